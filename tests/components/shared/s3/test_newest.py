"""Which of several versions in a bucket is the newest, on a real S3 server."""

import time
from pathlib import Path

import pytest

from components.__main__ import main
from components.errors import ConcordError
from components.s3_address import S3Address, parse_s3
from components.shared.s3.cache_index import S3Object
from components.shared.s3.listing import LISTING, connect, list_objects, listing_hash
from components.shared.s3.local_copy import fetched_listing, local_copy
from components.shared.s3.newest import newest_version
from tests.support.s3_server import Gateway, S3Server


def test_the_folder_written_last_is_the_newest(s3_server: S3Server, gateway: Gateway) -> None:
    for key in ("in/new-2/a", "in/new-1/a", "in/new-1/b/c", "in/other/a", "in/new-3", "in/deep/new-4/a"):
        s3_server.put(key, key.encode())
        time.sleep(1.1)  # times of objects are whole seconds
    address, digest = newest_version(parse_s3("s3://open/in/new-*"))
    assert address == S3Address("open", "in/new-1")
    with local_copy(address) as folder:
        assert (folder / "b" / "c").read_bytes() == b"in/new-1/b/c"
        assert fetched_listing(address) == digest
    s3_server.put("in/new-2/a", b"changed")
    changed, later = newest_version(parse_s3("s3://open/in/new-*"))
    assert changed == S3Address("open", "in/new-2")
    assert later != listing_hash([]) != digest
    assert later == listing_hash(list_objects(connect(""), changed))
    with pytest.raises(ConcordError, match=r"s3://open/in/none-\*: no folder of bucket open matches"):
        newest_version(parse_s3("s3://open/in/none-*"))
    with pytest.raises(ConcordError, match="a \\* may only be in the last part"):
        newest_version(parse_s3("s3://open/*/new-1"))


def test_the_hash_is_of_names_sizes_and_tags_in_any_order() -> None:
    objects = [S3Object("b", 2, "x"), S3Object("a", 1, "y")]
    assert listing_hash(objects) == listing_hash(objects[::-1])
    assert listing_hash(objects).startswith(LISTING)
    others = [S3Object("b", 2, "z"), S3Object("b", 3, "x"), S3Object("c", 2, "x")]
    assert len({listing_hash([other, objects[1]]) for other in (objects[0], *others)}) == 4


def test_the_command_writes_address_and_hash(
    s3_server: S3Server, gateway: Gateway, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    s3_server.put("command/v1/a", b"1")
    files = tmp_path / "out" / "uri", tmp_path / "out" / "hash"
    assert main(["newest", "s3://open/command/v*", "--uri", str(files[0]), "--hash", str(files[1])]) == 0
    address, digest = (file.read_text() for file in files)
    assert address == "s3://open/command/v1"
    assert digest == listing_hash(list_objects(connect(""), parse_s3(address)))
    assert capsys.readouterr().out.split() == [address, digest]
    assert main(["newest", "gs://open/v*"]) == 1
    assert "s3://bucket/prefix" in capsys.readouterr().err


def test_ingest_refuses_data_that_changed_after_the_first_step(
    s3_server: S3Server, gateway: Gateway, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    s3_server.put("ingested/v1/labels.csv", b"image,age\n")
    words = ["ingest", "--params", str(Path(__file__).parents[4] / "params.yaml"), "--data", "s3://open/ingested/v1"]
    assert main([*words, "--out", str(tmp_path / "out"), "--data-hash", f"{LISTING}{'0' * 32}"]) == 1
    assert f"its hash is {LISTING}" in "".join(capsys.readouterr().err.split("\n"))
