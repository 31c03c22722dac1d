"""Reading of untrusted archives: what is read, and what is refused."""

import gzip
import io
import os
import tarfile
import tracemalloc
from pathlib import Path

import pytest

from components.errors import ConcordError
from components.ingest.sources import archives
from components.ingest.sources.archives import Archives
from tests.support.packed import Mode, pack, pack_special

FILES = {"images/a.jpg": b"first", "./b.json": b"{}", "deep/er/ü \n'.png": b"x" * 3000}


def content(*paths: Path) -> dict[str, bytes]:
    with Archives(list(paths)) as packed:
        return {
            member.name: packed.read(member) for number in range(len(paths)) for member in list(packed.members(number))
        }


@pytest.mark.parametrize(("name", "mode"), [("a.tar", "w"), ("a.tar.gz", "w:gz"), ("a.tgz", "w:gz")])
def test_files_are_listed_and_read(tmp_path: Path, name: str, mode: Mode) -> None:
    expected = {"images/a.jpg": b"first", "b.json": b"{}", "deep/er/ü \n'.png": b"x" * 3000}
    assert content(pack(tmp_path / name, FILES, mode)) == expected


def test_more_archives_than_may_be_open_at_once_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "_MAX_OPEN", 2)
    paths = [pack(tmp_path / f"{k}.tar", {f"{k}.jpg": bytes([k])}) for k in range(5)]
    with Archives(paths) as packed:
        members = [member for k in range(5) for member in packed.members(k)]
        before = len(os.listdir("/proc/self/fd"))
        assert [packed.read(member) for member in reversed(members)] == [bytes([k]) for k in reversed(range(5))]
        assert len(os.listdir("/proc/self/fd")) <= before


def test_an_empty_archive_has_no_files(tmp_path: Path) -> None:
    assert content(pack(tmp_path / "a.tar", {})) == {}


@pytest.mark.parametrize("name", ["../a.jpg", "/etc/a.jpg", "images/../../a.jpg", "..\\a.jpg", "C:/a.jpg", ".."])
def test_a_path_outside_the_archive_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConcordError, match=r"a\.tar: .* is a path outside the archive"):
        content(pack(tmp_path / "a.tar", {"ok.jpg": b"1", name: b"2"}))
    assert os.listdir(tmp_path) == ["a.tar"]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (tarfile.SYMTYPE, "is a link"),
        (tarfile.LNKTYPE, "is a link"),
        (tarfile.CHRTYPE, "is neither a regular file nor a folder"),
        (tarfile.FIFOTYPE, "is neither a regular file nor a folder"),
    ],
)
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes, message: str) -> None:
    with pytest.raises(ConcordError, match=message):
        content(pack_special(tmp_path / "a.tar", "a.jpg", type=kind, linkname="/etc/hostname"))


def test_a_sparse_file_of_a_terabyte_is_refused(tmp_path: Path) -> None:
    header = {"GNU.sparse.map": "0,0,1099511627776,0", "GNU.sparse.size": "1099511627776"}
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("a.jpg")
        info.pax_headers = header
        tar.addfile(info)
    with pytest.raises(ConcordError, match="is neither a regular file nor a folder"):
        content(path)


def test_a_member_above_the_size_limit_is_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a.jpg")
    info.size = archives.MAX_MEMBER_BYTES + 1
    path = tmp_path / "a.tar"
    path.write_bytes(info.tobuf())
    os.truncate(path, info.size + 4096)  # a sparse file on the disk
    with pytest.raises(ConcordError, match=r"268,435,457 bytes, more than 268,435,456"):
        content(path)


def test_two_members_of_the_same_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConcordError, match=r"'\./a\.jpg' occurs twice"):
        content(pack(tmp_path / "a.tar", [("a.jpg", b"1"), ("./a.jpg", b"2")]))


def test_a_name_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT, encoding="latin-1") as tar:
        tar.addfile(tarfile.TarInfo("ß.jpg"))
    with pytest.raises(ConcordError, match="is not named in UTF-8"):
        content(path)


def bomb(path: Path, size: int) -> Path:
    """A gzipped archive of zeros, which unpacks to about a thousand times its size."""
    with tarfile.open(path, "w:gz") as tar:
        info = tarfile.TarInfo("a.jpg")
        info.size = size
        tar.addfile(info, io.BytesIO(bytes(size)))
    return path


def test_an_archive_that_unpacks_to_a_thousand_times_its_size_is_refused(tmp_path: Path) -> None:
    path = bomb(tmp_path / "a.tar.gz", 64 << 20)
    assert (64 << 20) / path.stat().st_size > 900
    tracemalloc.start()
    with pytest.raises(ConcordError, match=r"a\.tar\.gz: unpacks to more than 100 times its size"):
        content(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20


def test_small_images_that_compress_well_are_read(tmp_path: Path) -> None:
    files = {f"{k}.png": bytes([k % 256]) * 90 for k in range(300)}
    path = pack(tmp_path / "a.tar.gz", files, "w:gz")
    assert content(path) == files


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
@pytest.mark.parametrize(("name", "mode"), [("a.tar", "w"), ("a.tar.gz", "w:gz")])
def test_a_truncated_archive_is_an_error(tmp_path: Path, share: float, name: str, mode: Mode) -> None:
    files = {f"{k}.jpg": os.urandom(700) for k in range(40)}
    path = pack(tmp_path / name, files, mode)
    os.truncate(path, round(path.stat().st_size * share))
    with pytest.raises(ConcordError, match="Download it again"):
        content(path)


def test_an_archive_truncated_between_two_files_is_an_error(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.tar", {"a.jpg": b"1", "b.jpg": b"2"})
    os.truncate(path, 1024)
    with pytest.raises(ConcordError, match="truncated or damaged at byte 1024"):
        content(path)


def test_a_damaged_header_is_an_error(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.tar", {"a.jpg": b"1", "b.jpg": b"2"})
    data = bytearray(path.read_bytes())
    data[1024:1034] = b"\xff" * 10
    path.write_bytes(data)
    with pytest.raises(ConcordError, match="truncated or damaged at byte 1024"):
        content(path)


@pytest.mark.parametrize("data", [b"", b"no archive at all" * 99, gzip.compress(b"no archive" * 99, mtime=0)])
@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_a_file_that_is_not_an_archive_is_an_error(tmp_path: Path, data: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ConcordError, match="Download it again"):
        content(tmp_path / name)


def test_an_archive_that_is_truncated_during_reading_is_an_error(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.tar", {"a.jpg": b"x" * 5000})
    with Archives([path]) as packed:
        (member,) = packed.members(0)
        os.truncate(path, 3000)
        with pytest.raises(ConcordError, match=r"'a\.jpg' is truncated"):
            packed.read(member)
