"""Buckets, from a real S3 server that is killed and started again, through a gateway that misbehaves."""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from threading import Thread

import pytest

from components.errors import ConcordError
from components.shared.s3.address import S3Address, is_s3, parse_location, parse_s3
from components.shared.s3.cache import ContentCache
from components.shared.s3.local_copy import _check_name, _link, local_copy
from tests.support.raw_folder import ROOT, content
from tests.support.s3_server import OWNER, READER, Gateway, S3Server, free_ports

_names = count()
PATIENT = 240.0  # seconds, on a machine that has other work


@pytest.fixture
def prefix() -> str:
    """A folder of bucket `open` that no other test has."""
    return f"test-{next(_names)}"


def fill(server: S3Server, prefix: str, files: dict[str, bytes]) -> S3Address:
    for name, body in files.items():
        server.put(f"{prefix}/{name}", body)
    return S3Address("open", prefix)


def noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def copied(address: S3Address, patience: float = 60) -> dict[str, bytes]:
    with local_copy(address, patience) as folder:
        return content(folder)


def cached() -> dict[str, bytes]:
    return content(Path(".cache/objects"))


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("s3://b0/p", S3Address("b0", "p")),
        ("s3://b0/p/q//", S3Address("b0", "p/q")),
        ("s3://b0", S3Address("b0", "")),
        ("s3://b0/", S3Address("b0", "")),
        ("minio://b0/p/q/", S3Address("b0", "p/q")),
    ],
)
def test_addresses(text: str, address: S3Address) -> None:
    assert is_s3(text)
    assert parse_s3(text) == address


@pytest.mark.parametrize(
    "text", ["s3:/b0/p", "S3://b0/p", "minio:/b0/p", "s3://", "s3:///p", "s3://b 0/p", "s3://-b/p"]
)
def test_what_is_no_address(text: str) -> None:
    assert is_s3(text)
    with pytest.raises(ValueError, match=r"not an S3 address; write s3://bucket/prefix"):
        parse_s3(text)


@pytest.mark.parametrize(
    "text", ["s3://KEY:PLANTED@b0/p", "s3://b0/p?X-Amz-Signature=PLANTED", "s3://b0/p?Signature=PLANTED"]
)
def test_an_address_with_a_secret_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(ValueError, match=r"holds no credentials.*AWS_SECRET_ACCESS_KEY") as error:
        parse_s3(text)
    assert "PLANTED" not in str(error.value)


def test_a_local_folder_is_none() -> None:
    assert not is_s3("data/s3")
    assert not is_s3("../s3://x")
    assert parse_location("data/s3") == Path("data/s3")
    assert parse_location("minio://b0/p") == S3Address("b0", "p")


@pytest.mark.parametrize("text", ["gs://b0/p", "https://host/b0/p?token=PLANTED", "hdfs://b0"])
def test_addresses_of_other_stores_are_refused(text: str) -> None:
    scheme = text.partition("b0")[0].partition("host")[0]
    with pytest.raises(ValueError, match=rf"{scheme}\.\.\. cannot be read; .*copy the data to s3://") as error:
        parse_location(text)
    assert "PLANTED" not in str(error.value)


def test_the_folder_is_the_bucket_s(s3_server: S3Server, gateway: Gateway, prefix: str) -> None:
    files = {
        "labels.csv": b"a,b\n",
        "empty": b"",
        "images/deep/er/1.png": noise(1, 3000),
        "twice/1.png": noise(1, 3000),
        "we ird'\"\n é/名,;&+%20.txt": b"name",
    }
    address = fill(s3_server, prefix, files)
    s3_server.put(f"{prefix}2/other", b"no part of it")
    assert copied(address) == files
    assert len(cached()) == len(files) - 1, "the same content is kept once"
    for name, body in cached().items():
        assert hashlib.sha256(body).hexdigest() == name.replace("/", "")
    assert not list(Path(".cache/partial").iterdir())


def test_more_objects_than_a_page(
    s3_server: S3Server, gateway: Gateway, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the listing, and of the memory of it."""
    monkeypatch.setattr("components.shared.s3.local_copy.PAGE", 3)
    monkeypatch.setattr("components.shared.s3.cache_index.PAGE", 2)
    files = {f"{k % 3}/{k}": str(k).encode() for k in range(10)}
    assert copied(fill(s3_server, prefix, files)) == files
    assert len([path for path, _ in gateway.asked if "list-type" in path]) == 4


@pytest.mark.usefixtures("gateway")
def test_a_cache_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("file").touch()
    monkeypatch.setenv("CONCORD_CACHE", "file")
    with pytest.raises(ConcordError, match=r"file: cannot be the cache \(Not a directory\).*CONCORD_CACHE"):
        copied(S3Address("open", "x"))


def test_only_what_changed_is_fetched_again(s3_server: S3Server, gateway: Gateway, prefix: str) -> None:
    address = fill(s3_server, prefix, {"a": b"1", "b": b"2", "c": b"3"})
    copied(address)
    gateway.asked.clear()
    assert copied(address) == {"a": b"1", "b": b"2", "c": b"3"}
    assert gateway.objects() == []
    fill(s3_server, prefix, {"b": b"22", "d": b"1"})
    s3_server.owner.delete_object(Bucket="open", Key=f"{prefix}/c")
    assert copied(address) == {"a": b"1", "b": b"22", "d": b"1"}
    assert sorted(gateway.objects()) == [(f"/open/{prefix}/b", None), (f"/open/{prefix}/d", None)]


def test_what_is_damaged_in_the_cache_is_fetched_again(s3_server: S3Server, gateway: Gateway, prefix: str) -> None:
    address = fill(s3_server, prefix, {"a": b"whole", "b": b"other"})
    copied(address)
    file = ContentCache(Path(".cache")).path(hashlib.sha256(b"whole").hexdigest())
    assert file.stat().st_mode & 0o222 == 0, "nobody writes there by mistake"
    file.chmod(0o644)
    file.write_bytes(b"whale")
    gateway.asked.clear()
    assert copied(address) == {"a": b"whole", "b": b"other"}
    assert gateway.objects() == [(f"/open/{prefix}/a", None)]


def test_a_cache_that_several_share(
    s3_server: S3Server, gateway: Gateway, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONCORD_CACHE", str(tmp_path / "shared"))
    copied(fill(s3_server, prefix, {"a": b"1"}))
    assert not Path(".cache").exists()
    assert content(tmp_path / "shared" / "objects")


@pytest.fixture
def mortal(tmp_path: Path, gateway: Gateway) -> Iterator[S3Server]:
    """A server of the test's own behind the gateway: after a kill SeaweedFS may not know every access rule again."""
    (tmp_path / "weed").mkdir()
    server = S3Server(tmp_path / "weed")
    gateway.upstream = server.url.removeprefix("http://")
    yield server
    server.end()


def test_the_server_is_killed_midway_and_started_again(mortal: S3Server, gateway: Gateway, prefix: str) -> None:
    """What was there is kept: a file that was finished is not asked for again, one that was begun is gone on with."""
    # More than what the sockets on the way hold, which would come even without the server.
    files = {f"{k}.bin": noise(k, 12 << 20) for k in range(2)} | {"small": b"1"}
    address = fill(mortal, prefix, files)
    gateway.hold = lambda path: 1 << 20 if path.endswith(".bin") else None
    outage: list[float] = []

    def kill_and_start() -> None:
        wait_for(lambda: sum(size(file) > 900_000 for file in Path(".cache/partial").rglob("*")) == 2)
        start = time.monotonic()
        mortal.kill()
        gateway.go.set()
        time.sleep(1)
        mortal.start()
        outage.append(time.monotonic() - start)

    killer = Thread(target=kill_and_start)
    killer.start()
    assert copied(address, patience=PATIENT) == files
    killer.join()
    assert outage, "the server was not killed"
    asked = gateway.objects()
    assert [start for path, start in asked if path.endswith("small")] == [None]
    for name in ("0.bin", "1.bin"):
        first, *later = [start for path, start in asked if path.endswith(name)]
        assert first is None
        assert later, "it was not cut off"
        assert all(start and int(start[len("bytes=") : -1]) > 900_000 for start in later)


FETCH = "import sys; from components.shared.s3.local_copy import *; from components.shared.s3.address import *\n"


def test_a_kill_of_one_s_own_loses_nothing(s3_server: S3Server, gateway: Gateway, prefix: str) -> None:
    files = {"a.bin": noise(1, 2_000_000)} | {f"small/{k}": str(k).encode() for k in range(20)}
    address = fill(s3_server, prefix, files)
    gateway.hold = lambda path: 600_000 if path.endswith("a.bin") else None
    code = f"{FETCH}with local_copy(parse_s3(sys.argv[1])): pass"
    process = subprocess.Popen([sys.executable, "-c", code, str(address)], env=os.environ | {"PYTHONPATH": str(ROOT)})
    wait_for(lambda: any(size(file) > 500_000 for file in Path(".cache/partial").rglob("*")))
    wait_for(lambda: len(cached()) == 20)
    time.sleep(0.1)  # from the cache to what is known of it
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    gateway.go.set()
    gateway.asked.clear()
    assert copied(address) == files
    ((path, start),) = gateway.objects()
    assert path.endswith("a.bin"), "what was finished is not asked for again"
    assert start is not None
    assert int(start.removeprefix("bytes=").rstrip("-")) > 500_000


def test_parts_of_any_size_are_compared(
    s3_server: S3Server, gateway: Gateway, prefix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = [noise(1, 5 << 20), noise(2, 6 << 20), noise(3, 1000)]
    s3_server.put_in_parts(f"{prefix}/parts", parts)
    assert copied(S3Address("open", prefix)) == {"parts": b"".join(parts)}
    assert "have no MD5" not in capsys.readouterr().err
    shutil.rmtree(".cache")
    gateway.damage = lambda path: path.endswith("parts")
    with pytest.raises(ConcordError, match=r"parts: what came does not have the MD5 that the server's ETag tells"):
        copied(S3Address("open", prefix))


def test_wrong_bytes_are_asked_for_once_more(s3_server: S3Server, gateway: Gateway, prefix: str) -> None:
    address = fill(s3_server, prefix, {"a": b"right", "b": b"other"})
    gateway.damage = lambda path: path.endswith("a") and gateway.objects().count((path, None)) < 2
    assert copied(address) == {"a": b"right", "b": b"other"}
    shutil.rmtree(".cache")
    gateway.damage = lambda path: path.endswith("a")
    with pytest.raises(ConcordError, match=r"/a: what came does not have the MD5.*twice.*put it there again"):
        copied(address)
    assert b"sight" not in cached().values()


def test_a_failure_keeps_what_came_before(s3_server: S3Server, gateway: Gateway, prefix: str) -> None:
    files = {f"{k:02d}": noise(k, 1000) for k in range(40)}
    address = fill(s3_server, prefix, files)
    gateway.status = lambda path: 403 if path.endswith("/39") else None
    with pytest.raises(ConcordError, match=r"/39: .*refuses it \(403"):
        copied(address)
    here = len(cached())
    gateway.status = lambda path: None
    gateway.asked.clear()
    assert copied(address) == files
    assert 0 < here == 40 - len(gateway.objects())


def test_a_log_tells_how_far_it_is(
    s3_server: S3Server, gateway: Gateway, prefix: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Without a terminal there is no bar."""
    monkeypatch.setattr("components.shared.io.progress.LINE_SECONDS", 0.0)
    address = fill(s3_server, prefix, {"a": noise(1, 2 << 20)})
    copied(address)
    said = capsys.readouterr().err
    assert f"{address}: 1 objects, 2.0 MiB; to fetch: 1, 2.0 MiB" in said
    steps = [float(line.split()[1]) for line in said.splitlines() if line.startswith("fetching: ")]
    assert len(steps) > 3
    assert steps == sorted(steps)
    assert steps[0] < 1 < steps[-1] == 2
    assert f"{address}: 1 fetched, 0 in the cache already" in said


def test_half_a_body_is_completed(s3_server: S3Server, gateway: Gateway, prefix: str) -> None:
    body = noise(1, 1_000_000)
    address = fill(s3_server, prefix, {"a": body})
    gateway.cut = lambda path: 400_000 if path.endswith("a") else None
    assert copied(address) == {"a": body}
    assert [range is None for _, range in gateway.objects()] == [True, False, False]


def test_a_server_that_is_busy_for_a_while(s3_server: S3Server, gateway: Gateway, prefix: str) -> None:
    address = fill(s3_server, prefix, {"a": b"1"})
    gateway.status = lambda path: 503 if len(gateway.asked) in (1, 2, 4) else None
    assert copied(address) == {"a": b"1"}
    assert len(gateway.asked) == 5


Spoil = Callable[[Gateway, pytest.MonkeyPatch], object]


def credentials(key: str, secret: str) -> Spoil:
    def spoil(_: Gateway, patch: pytest.MonkeyPatch) -> None:
        patch.setenv("AWS_ACCESS_KEY_ID", key)
        patch.setenv("AWS_SECRET_ACCESS_KEY", secret)

    return spoil


def no_credentials(_: Gateway, patch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        patch.delenv(name)
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    patch.setenv("AWS_SHARED_CREDENTIALS_FILE", "none")


def endpoint(url: str) -> Spoil:
    return lambda _, patch: patch.setenv("AWS_ENDPOINT_URL", url)


def answers(status: int, name: str = "") -> Spoil:
    return lambda gateway, _: setattr(gateway, "status", lambda path: status if path.endswith(name) else None)


def hangs_up(gateway: Gateway, _: pytest.MonkeyPatch) -> None:
    gateway.cut = lambda path: 0 if path.endswith("a.png") else None


def proxy(_: Gateway, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("http_proxy", f"http://me:PLANTED@127.0.0.1:{free_ports(1)[0]}")
    patch.setenv("no_proxy", "")


def nothing(*_: object) -> None:
    pass


@pytest.mark.parametrize(
    ("address", "spoil", "said"),
    [
        ("s3://closed/x", nothing, r"s3://closed/x: .*refuses it \(403 AccessDenied\)\. Give credentials"),
        ("s3://open/x", credentials(READER[0], "wrong"), r"refuses it \(403 SignatureDoesNotMatch\)"),
        ("s3://open/x", credentials("NOBODY", "wrong"), r"refuses it \(403 InvalidAccessKeyId\)"),
        ("s3://open/x", no_credentials, r"no credentials to ask with .*AWS_ACCESS_KEY_ID"),
        ("s3://nowhere/x", credentials(*OWNER), r"s3://nowhere/x: no such bucket at http://127.*\(404\)"),
        ("s3://open/nothing-here", nothing, r"nothing there: no object of bucket open.*'nothing-here/'.*Correct"),
        ("s3://open/", answers(503), r"answers 503 .*, for 1 s now\. Check AWS_ENDPOINT_URL"),
        (
            "s3://open/",
            endpoint(f"http://127.0.0.1:{free_ports(1)[0]}"),
            r"no whole answer \(EndpointConnectionError\)",
        ),
        ("s3://open/", proxy, r"no whole answer \(ProxyConnectionError\), for 1 s now"),
        ("s3://open/", endpoint("no url"), r"cannot be talked to \(ValueError\)"),
        ("s3://open/ill", answers(403, "a.png"), r"s3://open/ill/a\.png: .*refuses it \(403"),
        ("s3://open/ill", answers(404, "a.png"), r"s3://open/ill/a\.png: removed or replaced since it was listed"),
        ("s3://open/ill", answers(412, "a.png"), r"s3://open/ill/a\.png: removed or replaced since it was listed"),
        ("s3://open/ill", answers(503, "a.png"), r"s3://open/ill/a\.png: .*answers 503"),
        ("s3://open/ill", hangs_up, r"s3://open/ill/a\.png: .*no whole answer \(.*\), for 1 s.*is not fetched again"),
    ],
    ids=[
        "no-access",
        "wrong-secret",
        "unknown-key",
        "no-credentials",
        "no-bucket",
        "empty",
        "busy",
        "nobody-there",
        "no-proxy",
        "no-endpoint",
        "object-refused",
        "object-gone",
        "object-changed",
        "object-busy",
        "hangs-up",
    ],
)
def test_errors_say_what_to_do(
    address: str, spoil: Spoil, said: str, s3_server: S3Server, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(s3_server, "ill", {"a.png": b"abcdefgh", "b.png": b"1"})
    spoil(gateway, monkeypatch)
    with pytest.raises(ConcordError, match=said) as error:
        copied(parse_s3(address), patience=1)
    assert "PLANTED" not in str(error.value)
    assert not any(path.is_dir() for path in Path(".cache/s3").iterdir()), "half a folder is none"


def test_what_was_replaced_since_it_was_listed(s3_server: S3Server, gateway: Gateway, prefix: str) -> None:
    address = fill(s3_server, prefix, {"a": b"old"})

    def replace(path: str) -> None:
        if path.endswith("/a"):
            s3_server.put(f"{prefix}/a", b"new")

    gateway.status = replace
    with pytest.raises(ConcordError, match=r"/a: removed or replaced since it was listed \(412"):
        copied(address)
    gateway.status = lambda path: None
    assert copied(address) == {"a": b"new"}


@pytest.mark.parametrize("name", ["../x", "a//b", "/etc/passwd", "./a", "a/..", "a\0b", "é" * 128])
def test_a_key_that_is_no_file_s_name(name: str) -> None:
    with pytest.raises(ConcordError, match=r"s3://b0/p: its object .* cannot be a file of that name\. Name it other"):
        _check_name(S3Address("b0", "p"), name)


def test_a_key_that_is_file_and_folder_at_once(tmp_path: Path) -> None:
    file = tmp_path / "content"
    file.write_bytes(b"1")
    links = tmp_path / "links"
    _link(file, links / "a", "s3://b0/a")
    with pytest.raises(ConcordError, match=r"s3://b0/a/b: cannot be a file, since another object"):
        _link(file, links / "a" / "b", "s3://b0/a/b")
    _link(file, links / "c" / "d", "s3://b0/c/d")
    with pytest.raises(ConcordError, match=r"s3://b0/c: cannot be a file"):
        _link(file, links / "c", "s3://b0/c")


def test_a_memory_that_is_damaged(s3_server: S3Server, gateway: Gateway, prefix: str) -> None:
    address = fill(s3_server, prefix, {"a": b"1"})
    copied(address)
    (index,) = Path(".cache/s3").glob("*.sqlite")
    index.write_bytes(b"no database" * 1000)
    with pytest.raises(ConcordError, match=r"\.sqlite: damaged .*Remove it"):
        copied(address)
    index.unlink()
    assert copied(address) == {"a": b"1"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of four MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_no_space_left(
    s3_server: S3Server, gateway: Gateway, prefix: str, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONCORD_CACHE", str(small_disk))
    files = {"a": noise(1, 2_000_000), "b": noise(2, 1_000_000)}
    address = fill(s3_server, prefix, files)
    filler = small_disk / "filler"

    def fill_up(path: str) -> None:
        if path.endswith("/a"):
            filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - 1_200_000))

    gateway.status = fill_up
    with pytest.raises(ConcordError, match=r"disk.*: no space left on its disk \(. of 4 MiB free\)"):
        copied(address)
    gateway.status = lambda path: None
    filler.unlink()
    assert copied(address) == files
    fill(s3_server, prefix, {"c": noise(3, 3_000_000)})
    gateway.asked.clear()
    with pytest.raises(ConcordError, match=r"no space left on its disk.*2\.9 MiB are still to be fetched"):
        copied(address)
    assert gateway.objects() == [], "told before anything is fetched"


def test_data_beyond_the_cache_limit_is_refused_before_it_is_fetched(
    s3_server: S3Server, gateway: Gateway, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"a": noise(1, 2_000_000), "b": noise(2, 1_000_000)}
    address = fill(s3_server, prefix, files)
    monkeypatch.setenv("CONCORD_CACHE_LIMIT", "3000001")  # the index comes on top
    with pytest.raises(ConcordError, match=r"2\.9 MiB are to be fetched, and the cache \.cache has .* CONCORD_CACHE_L"):
        copied(address)
    assert gateway.objects() == []
    monkeypatch.setenv("CONCORD_CACHE_LIMIT", "4000000")
    assert copied(address) == files
    assert copied(address) == files, "what is in the cache is not counted twice"
    fill(s3_server, prefix, {"c": noise(3, 1_000_000)})
    gateway.asked.clear()
    with pytest.raises(ConcordError, match=r"1\.0 MiB are to be fetched"):
        copied(address)
    assert gateway.objects() == []
    monkeypatch.setenv("CONCORD_CACHE_LIMIT", "10Gi")
    with pytest.raises(ConcordError, match="CONCORD_CACHE_LIMIT: '10Gi' is no number of bytes"):
        copied(address)


def test_memory_does_not_grow_with_an_object(s3_server: S3Server, gateway: Gateway, prefix: str) -> None:
    address = fill(s3_server, prefix, {"a": bytes(40 << 20), "b": noise(1, 1 << 20)})
    code = (
        f"{FETCH}import resource\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10\n"
        "with local_copy(S3Address('open', sys.argv[1])): before = peak()\n"
        "with local_copy(parse_s3(sys.argv[2])): print(peak() - before)"
    )
    fill(s3_server, f"{prefix}-small", {"a": b"1", "b": b"2"})
    words = [sys.executable, "-c", code, f"{prefix}-small", str(address)]
    run = subprocess.run(words, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True)
    assert int(run.stdout) < 24, "MiB"


def size(file: Path) -> int:
    try:
        return file.stat().st_size if file.is_file() else 0
    except FileNotFoundError:
        return 0


def wait_for(condition: Callable[[], bool], seconds: float = PATIENT) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)
