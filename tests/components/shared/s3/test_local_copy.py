"""`local_copy` with a real S3 server, which tests kill and restart, behind a gateway that injects errors."""

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

from components.errors import ConcordError, RetryableError
from components.s3_address import S3Address, is_s3, parse_location, parse_s3
from components.shared.s3.cache import ContentCache
from components.shared.s3.errors import endpoint as endpoint_of_environment
from components.shared.s3.listing import check_name
from components.shared.s3.local_copy import _link, local_copy
from tests.support.raw_folder import ROOT, content
from tests.support.s3_server import OWNER, READER, Gateway, S3Server
from tests.support.services import free_ports

_names = count()
LONG_TIMEOUT = 240.0  # seconds; enough for a busy machine


@pytest.fixture
def prefix() -> str:
    """A folder in the bucket `open` that no other test uses."""
    return f"test-{next(_names)}"


def upload(server: S3Server, prefix: str, files: dict[str, bytes]) -> S3Address:
    for name, body in files.items():
        server.put(f"{prefix}/{name}", body)
    return S3Address("open", prefix)


def random_bytes(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def copy_content(address: S3Address, retry_seconds: float = 60) -> dict[str, bytes]:
    with local_copy(address, retry_seconds) as folder:
        return content(folder)


def cache_content() -> dict[str, bytes]:
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
def test_valid_addresses_are_parsed(text: str, address: S3Address) -> None:
    assert is_s3(text)
    assert parse_s3(text) == address


@pytest.mark.parametrize(
    "text", ["s3:/b0/p", "S3://b0/p", "minio:/b0/p", "s3://", "s3:///p", "s3://b 0/p", "s3://-b/p"]
)
def test_malformed_addresses_are_errors(text: str) -> None:
    assert is_s3(text)
    with pytest.raises(ValueError, match=r"not an S3 address; write s3://bucket/prefix"):
        parse_s3(text)


@pytest.mark.parametrize(
    "text", ["s3://KEY:PLANTED@b0/p", "s3://b0/p?X-Amz-Signature=PLANTED", "s3://b0/p?Signature=PLANTED"]
)
def test_an_address_with_a_secret_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(ValueError, match=r"must not contain credentials.*AWS_SECRET_ACCESS_KEY") as error:
        parse_s3(text)
    assert "PLANTED" not in str(error.value)


def test_a_local_path_is_not_an_s3_address() -> None:
    assert not is_s3("data/s3")
    assert not is_s3("../s3://x")
    assert parse_location("data/s3") == Path("data/s3")
    assert parse_location("minio://b0/p") == S3Address("b0", "p")


@pytest.mark.parametrize("text", ["gs://b0/p", "https://host/b0/p?token=PLANTED", "hdfs://b0"])
def test_addresses_with_other_schemes_are_errors(text: str) -> None:
    scheme = text.partition("b0")[0].partition("host")[0]
    with pytest.raises(ValueError, match=rf"{scheme}\.\.\. is not supported; .*copy the data to s3://") as error:
        parse_location(text)
    assert "PLANTED" not in str(error.value)


def test_the_local_folder_equals_the_folder_in_the_bucket(s3_server: S3Server, gateway: Gateway, prefix: str) -> None:
    files = {
        "labels.csv": b"a,b\n",
        "empty": b"",
        "images/deep/er/1.png": random_bytes(1, 3000),
        "twice/1.png": random_bytes(1, 3000),
        "we ird'\"\n é/名,;&+%20.txt": b"name",
    }
    address = upload(s3_server, prefix, files)
    s3_server.put(f"{prefix}2/other", b"in another folder")
    assert copy_content(address) == files
    assert len(cache_content()) == len(files) - 1, "equal content must be stored once"
    for name, body in cache_content().items():
        assert hashlib.sha256(body).hexdigest() == name.replace("/", "")
    assert not list(Path(".cache/partial").iterdir())


def test_more_objects_than_a_page_are_listed(
    s3_server: S3Server, gateway: Gateway, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With small pages of both the listing and the index."""
    monkeypatch.setattr("components.shared.s3.listing.PAGE", 3)
    monkeypatch.setattr("components.shared.s3.cache_index.PAGE", 2)
    files = {f"{k % 3}/{k}": str(k).encode() for k in range(10)}
    assert copy_content(upload(s3_server, prefix, files)) == files
    assert len([path for path, _ in gateway.requests if "list-type" in path]) == 4


@pytest.mark.usefixtures("gateway")
def test_an_unusable_cache_folder_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("file").touch()
    monkeypatch.setenv("CONCORD_CACHE", "file")
    with pytest.raises(ConcordError, match=r"file: cannot be used as the cache \(Not a directory\).*CONCORD_CACHE"):
        copy_content(S3Address("open", "x"))


def test_only_changed_objects_are_fetched_again(s3_server: S3Server, gateway: Gateway, prefix: str) -> None:
    address = upload(s3_server, prefix, {"a": b"1", "b": b"2", "c": b"3"})
    copy_content(address)
    gateway.requests.clear()
    assert copy_content(address) == {"a": b"1", "b": b"2", "c": b"3"}
    assert gateway.objects() == []
    upload(s3_server, prefix, {"b": b"22", "d": b"1"})
    s3_server.owner.delete_object(Bucket="open", Key=f"{prefix}/c")
    assert copy_content(address) == {"a": b"1", "b": b"22", "d": b"1"}
    assert sorted(gateway.objects()) == [(f"/open/{prefix}/b", None), (f"/open/{prefix}/d", None)]


def test_damaged_content_in_the_cache_is_fetched_again(s3_server: S3Server, gateway: Gateway, prefix: str) -> None:
    address = upload(s3_server, prefix, {"a": b"whole", "b": b"other"})
    copy_content(address)
    file = ContentCache(Path(".cache")).path(hashlib.sha256(b"whole").hexdigest())
    assert file.stat().st_mode & 0o222 == 0, "cached files must be read-only"
    file.chmod(0o644)
    file.write_bytes(b"whale")
    gateway.requests.clear()
    assert copy_content(address) == {"a": b"whole", "b": b"other"}
    assert gateway.objects() == [(f"/open/{prefix}/a", None)]


def test_concord_cache_sets_the_cache_folder(
    s3_server: S3Server, gateway: Gateway, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONCORD_CACHE", str(tmp_path / "shared"))
    copy_content(upload(s3_server, prefix, {"a": b"1"}))
    assert not Path(".cache").exists()
    assert content(tmp_path / "shared" / "objects")


@pytest.fixture
def own_server(tmp_path: Path, gateway: Gateway) -> Iterator[S3Server]:
    """A server for one test, behind the gateway, since SeaweedFS may lose access rules when it is killed."""
    (tmp_path / "weed").mkdir()
    server = S3Server(tmp_path / "weed")
    gateway.upstream = server.url.removeprefix("http://")
    yield server
    server.end()


def test_downloads_resume_when_a_killed_server_is_restarted(
    own_server: S3Server, gateway: Gateway, prefix: str
) -> None:
    """Complete files are not fetched again, and partial ones are resumed."""
    # Larger than the socket buffers, whose content would arrive even from a killed server.
    files = {f"{k}.bin": random_bytes(k, 12 << 20) for k in range(2)} | {"small": b"1"}
    address = upload(own_server, prefix, files)
    gateway.hold = lambda path: 1 << 20 if path.endswith(".bin") else None
    outage: list[float] = []

    def kill_and_start() -> None:
        wait_for(lambda: sum(size(file) > 900_000 for file in Path(".cache/partial").rglob("*")) == 2)
        start = time.monotonic()
        own_server.kill()
        gateway.go.set()
        time.sleep(1)
        own_server.start()
        outage.append(time.monotonic() - start)

    killer = Thread(target=kill_and_start)
    killer.start()
    assert copy_content(address, retry_seconds=LONG_TIMEOUT) == files
    killer.join()
    assert outage, "the server was not killed"
    requests = gateway.objects()
    assert [start for path, start in requests if path.endswith("small")] == [None]
    for name in ("0.bin", "1.bin"):
        first, *later = [start for path, start in requests if path.endswith(name)]
        assert first is None
        assert later, "the download was not interrupted"
        assert all(start and int(start[len("bytes=") : -1]) > 900_000 for start in later)


IMPORTS = "import sys; from components.shared.s3.local_copy import *; from components.s3_address import *\n"


def test_a_killed_process_resumes(s3_server: S3Server, gateway: Gateway, prefix: str) -> None:
    files = {"a.bin": random_bytes(1, 2_000_000)} | {f"small/{k}": str(k).encode() for k in range(20)}
    address = upload(s3_server, prefix, files)
    gateway.hold = lambda path: 600_000 if path.endswith("a.bin") else None
    code = f"{IMPORTS}with local_copy(parse_s3(sys.argv[1])): pass"
    process = subprocess.Popen([sys.executable, "-c", code, str(address)], env=os.environ | {"PYTHONPATH": str(ROOT)})
    wait_for(lambda: any(size(file) > 500_000 for file in Path(".cache/partial").rglob("*")))
    wait_for(lambda: len(cache_content()) == 20)
    time.sleep(0.1)  # until the last file of the cache is in the index
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    gateway.go.set()
    gateway.requests.clear()
    assert copy_content(address) == files
    ((path, start),) = gateway.objects()
    assert path.endswith("a.bin"), "complete files must not be requested again"
    assert start is not None
    assert int(start.removeprefix("bytes=").rstrip("-")) > 500_000


def test_checksums_of_multipart_uploads_are_verified(
    s3_server: S3Server, gateway: Gateway, prefix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = [random_bytes(1, 5 << 20), random_bytes(2, 6 << 20), random_bytes(3, 1000)]
    s3_server.put_in_parts(f"{prefix}/parts", parts)
    assert copy_content(S3Address("open", prefix)) == {"parts": b"".join(parts)}
    assert "have no MD5" not in capsys.readouterr().err
    shutil.rmtree(".cache")
    gateway.damage = lambda path: path.endswith("parts")
    with pytest.raises(ConcordError, match=r"parts: the downloaded bytes do not match the MD5 in the server's ETag"):
        copy_content(S3Address("open", prefix))


def test_an_object_with_wrong_bytes_is_fetched_a_second_time(
    s3_server: S3Server, gateway: Gateway, prefix: str
) -> None:
    address = upload(s3_server, prefix, {"a": b"right", "b": b"other"})
    gateway.damage = lambda path: path.endswith("a") and gateway.objects().count((path, None)) < 2
    assert copy_content(address) == {"a": b"right", "b": b"other"}
    shutil.rmtree(".cache")
    gateway.damage = lambda path: path.endswith("a")
    with pytest.raises(ConcordError, match=r"/a: the downloaded bytes do not match.*twice.*upload it again"):
        copy_content(address)
    assert b"sight" not in cache_content().values()


def test_objects_fetched_before_an_error_are_kept(s3_server: S3Server, gateway: Gateway, prefix: str) -> None:
    files = {f"{k:02d}": random_bytes(k, 1000) for k in range(40)}
    address = upload(s3_server, prefix, files)
    gateway.status = lambda path: 403 if path.endswith("/39") else None
    with pytest.raises(ConcordError, match=r"/39: .*refuses access \(403"):
        copy_content(address)
    fetched = len(cache_content())
    gateway.status = lambda path: None
    gateway.requests.clear()
    assert copy_content(address) == files
    assert 0 < fetched == 40 - len(gateway.objects())


def test_progress_is_logged_without_a_terminal(
    s3_server: S3Server, gateway: Gateway, prefix: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """As lines, in place of a progress bar."""
    monkeypatch.setattr("components.shared.io.progress.LINE_SECONDS", 0.0)
    address = upload(s3_server, prefix, {"a": random_bytes(1, 2 << 20)})
    copy_content(address)
    stderr = capsys.readouterr().err
    assert f"{address}: 1 objects, 2.0 MiB; to fetch: 1, 2.0 MiB" in stderr
    steps = [float(line.split()[1]) for line in stderr.splitlines() if line.startswith("fetching: ")]
    assert len(steps) > 3
    assert steps == sorted(steps)
    assert steps[0] < 1 < steps[-1] == 2
    assert f"{address}: 1 fetched, 0 already in the cache" in stderr


def test_a_truncated_response_is_resumed(s3_server: S3Server, gateway: Gateway, prefix: str) -> None:
    body = random_bytes(1, 1_000_000)
    address = upload(s3_server, prefix, {"a": body})
    gateway.cut = lambda path: 400_000 if path.endswith("a") else None
    assert copy_content(address) == {"a": body}
    assert [range is None for _, range in gateway.objects()] == [True, False, False]


def test_requests_to_a_busy_server_are_retried(s3_server: S3Server, gateway: Gateway, prefix: str) -> None:
    address = upload(s3_server, prefix, {"a": b"1"})
    gateway.status = lambda path: 503 if len(gateway.requests) in (1, 2, 4) else None
    assert copy_content(address) == {"a": b"1"}
    assert len(gateway.requests) == 5


Inject = Callable[[Gateway, pytest.MonkeyPatch], object]


def credentials(key: str, secret: str) -> Inject:
    def inject(_: Gateway, patch: pytest.MonkeyPatch) -> None:
        patch.setenv("AWS_ACCESS_KEY_ID", key)
        patch.setenv("AWS_SECRET_ACCESS_KEY", secret)

    return inject


def no_credentials(_: Gateway, patch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        patch.delenv(name)
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    patch.setenv("AWS_SHARED_CREDENTIALS_FILE", "none")


def endpoint(url: str) -> Inject:
    return lambda _, patch: patch.setenv("AWS_ENDPOINT_URL", url)


def respond(status: int, name: str = "") -> Inject:
    return lambda gateway, _: setattr(gateway, "status", lambda path: status if path.endswith(name) else None)


def close_connection(gateway: Gateway, _: pytest.MonkeyPatch) -> None:
    gateway.cut = lambda path: 0 if path.endswith("a.png") else None


def proxy(_: Gateway, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("http_proxy", f"http://me:PLANTED@127.0.0.1:{free_ports(1)[0]}")
    patch.setenv("no_proxy", "")


def nothing(*_: object) -> None:
    pass


@pytest.mark.parametrize(
    ("address", "inject", "message"),
    [
        ("s3://closed/x", nothing, r"s3://closed/x: .*refuses access \(403 AccessDenied\)\. Give credentials"),
        ("s3://open/x", credentials(READER[0], "wrong"), r"refuses access \(403 SignatureDoesNotMatch\)"),
        ("s3://open/x", credentials("NOBODY", "wrong"), r"refuses access \(403 InvalidAccessKeyId\)"),
        ("s3://open/x", no_credentials, r"no credentials \(.*AWS_ACCESS_KEY_ID"),
        ("s3://nowhere/x", credentials(*OWNER), r"s3://nowhere/x: no such bucket at http://127.*\(404\)"),
        ("s3://open/nothing-here", nothing, r"empty: no object in bucket open.*'nothing-here/'.*Correct"),
        ("s3://open/", respond(503), r"answers 503 .*, after 1 s of retries\. Check AWS_ENDPOINT_URL"),
        (
            "s3://open/",
            endpoint(f"http://127.0.0.1:{free_ports(1)[0]}"),
            r"no complete response \(EndpointConnectionError\)",
        ),
        ("s3://open/", proxy, r"no complete response \(ProxyConnectionError\), after 1 s of retries"),
        ("s3://open/", endpoint("no url"), r"cannot be used \(ValueError\)"),
        ("s3://open/ill", respond(403, "a.png"), r"s3://open/ill/a\.png: .*refuses access \(403"),
        ("s3://open/ill", respond(404, "a.png"), r"s3://open/ill/a\.png: removed or replaced since it was listed"),
        ("s3://open/ill", respond(412, "a.png"), r"s3://open/ill/a\.png: removed or replaced since it was listed"),
        ("s3://open/ill", respond(503, "a.png"), r"s3://open/ill/a\.png: .*answers 503"),
        (
            "s3://open/ill",
            close_connection,
            r"s3://open/ill/a\.png: .*no complete response \(.*\), after 1 s.*is not fetched again",
        ),
    ],
    ids=[
        "no-access",
        "wrong-secret",
        "unknown-key",
        "no-credentials",
        "no-bucket",
        "empty",
        "busy",
        "unreachable",
        "no-proxy",
        "no-endpoint",
        "object-refused",
        "object-gone",
        "object-changed",
        "object-busy",
        "connection-closed",
    ],
)
def test_error_messages_name_address_and_remedy(
    address: str, inject: Inject, message: str, s3_server: S3Server, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(s3_server, "ill", {"a.png": b"abcdefgh", "b.png": b"1"})
    inject(gateway, monkeypatch)
    with pytest.raises(ConcordError, match=message) as error:
        copy_content(parse_s3(address), retry_seconds=1)
    assert isinstance(error.value, RetryableError) == ("of retries" in str(error.value))
    assert "PLANTED" not in str(error.value)
    assert not any(path.is_dir() for path in Path(".cache/s3").iterdir()), "a partial folder must not be left"


def test_an_object_replaced_after_the_listing_is_an_error(s3_server: S3Server, gateway: Gateway, prefix: str) -> None:
    address = upload(s3_server, prefix, {"a": b"old"})

    def replace(path: str) -> None:
        if path.endswith("/a"):
            s3_server.put(f"{prefix}/a", b"new")

    gateway.status = replace
    with pytest.raises(ConcordError, match=r"/a: removed or replaced since it was listed \(412"):
        copy_content(address)
    gateway.status = lambda path: None
    assert copy_content(address) == {"a": b"new"}


@pytest.mark.parametrize("name", ["../x", "a//b", "/etc/passwd", "./a", "a/..", "a\0b", "é" * 128])
def test_a_key_that_is_not_a_valid_file_name_is_an_error(name: str) -> None:
    with pytest.raises(ConcordError, match=r"s3://b0/p: the key .* is not a valid file name\. Rename the object"):
        check_name(S3Address("b0", "p"), name)


def test_a_key_that_is_both_file_and_folder_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "content"
    file.write_bytes(b"1")
    links = tmp_path / "links"
    _link(file, links / "a", "s3://b0/a")
    with pytest.raises(ConcordError, match=r"s3://b0/a/b: cannot be stored as a file: .* another object"):
        _link(file, links / "a" / "b", "s3://b0/a/b")
    _link(file, links / "c" / "d", "s3://b0/c/d")
    with pytest.raises(ConcordError, match=r"s3://b0/c: cannot be stored as a file"):
        _link(file, links / "c", "s3://b0/c")


def test_a_damaged_index_is_an_error_until_it_is_removed(s3_server: S3Server, gateway: Gateway, prefix: str) -> None:
    address = upload(s3_server, prefix, {"a": b"1"})
    copy_content(address)
    (index,) = Path(".cache/s3").glob("*.sqlite")
    index.write_bytes(b"no database" * 1000)
    with pytest.raises(ConcordError, match=r"\.sqlite: damaged .*Remove it"):
        copy_content(address)
    index.unlink()
    assert copy_content(address) == {"a": b"1"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A mounted file system of 4 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_an_error_and_the_next_call_resumes(
    s3_server: S3Server, gateway: Gateway, prefix: str, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONCORD_CACHE", str(small_disk))
    files = {"a": random_bytes(1, 2_000_000), "b": random_bytes(2, 1_000_000)}
    address = upload(s3_server, prefix, files)
    filler = small_disk / "filler"

    def fill_up(path: str) -> None:
        if path.endswith("/a"):
            filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - 1_200_000))

    gateway.status = fill_up
    with pytest.raises(ConcordError, match=r"disk.*: no space left on its disk \(. of 4 MiB free\)"):
        copy_content(address)
    gateway.status = lambda path: None
    filler.unlink()
    assert copy_content(address) == files
    upload(s3_server, prefix, {"c": random_bytes(3, 3_000_000)})
    gateway.requests.clear()
    with pytest.raises(ConcordError, match=r"no space left on its disk.*2\.9 MiB are still to be fetched"):
        copy_content(address)
    assert gateway.objects() == [], "the error must come before anything is fetched"


def test_data_beyond_the_cache_limit_is_refused_before_it_is_fetched(
    s3_server: S3Server, gateway: Gateway, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"a": random_bytes(1, 2_000_000), "b": random_bytes(2, 1_000_000)}
    address = upload(s3_server, prefix, files)
    monkeypatch.setenv("CONCORD_CACHE_LIMIT", "3000001")  # too little, since the index counts too
    with pytest.raises(ConcordError, match=r"2\.9 MiB must be fetched, but the cache \.cache has .* CONCORD_CACHE_LIM"):
        copy_content(address)
    assert gateway.objects() == []
    monkeypatch.setenv("CONCORD_CACHE_LIMIT", "4000000")
    assert copy_content(address) == files
    assert copy_content(address) == files, "cached content must not be counted twice"
    upload(s3_server, prefix, {"c": random_bytes(3, 1_000_000)})
    gateway.requests.clear()
    with pytest.raises(ConcordError, match=r"1\.0 MiB must be fetched"):
        copy_content(address)
    assert gateway.objects() == []
    monkeypatch.setenv("CONCORD_CACHE_LIMIT", "10Gi")
    with pytest.raises(ConcordError, match="CONCORD_CACHE_LIMIT: '10Gi' is not a number of bytes"):
        copy_content(address)


def test_memory_does_not_grow_with_the_size_of_an_object(s3_server: S3Server, gateway: Gateway, prefix: str) -> None:
    address = upload(s3_server, prefix, {"a": bytes(40 << 20), "b": random_bytes(1, 1 << 20)})
    code = (
        f"{IMPORTS}import resource\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10\n"
        "with local_copy(S3Address('open', sys.argv[1])): before = peak()\n"
        "with local_copy(parse_s3(sys.argv[2])): print(peak() - before)"
    )
    upload(s3_server, f"{prefix}-small", {"a": b"1", "b": b"2"})
    command = [sys.executable, "-c", code, f"{prefix}-small", str(address)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert int(run.stdout) < 24, "MiB"


def size(file: Path) -> int:
    try:
        return file.stat().st_size if file.is_file() else 0
    except FileNotFoundError:
        return 0


def wait_for(condition: Callable[[], bool], seconds: float = LONG_TIMEOUT) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition was not met in time"
        time.sleep(0.01)


def test_the_endpoint_in_messages_has_no_login(monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("https://me:PLANTED@s3.example:9000/x", "https://me:PLAN/TED@s3.example:9000/x"):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        assert endpoint_of_environment() == "https://s3.example:9000"
