"""Which images the words of a command line name, and in which order."""

import json
import os
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.commands.predict.images import Image, with_data
from components.commands.predict.sources import open_sources
from components.errors import ConcordError
from tests.support.s3_server import Gateway, S3Server


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(*names: str) -> None:
    """Writes files whose content is their name."""
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(name)


def images(*words: str, column: str | None = None) -> list[Image]:
    with ExitStack() as stack:
        sources = open_sources(words, column, stack)
        found = [with_data(image) for source in sources for image in source.images()]
        assert sum(source.count() for source in sources) == len(found)
        return found


def names(*words: str, column: str | None = None) -> list[str]:
    return [image.name for image in images(*words, column=column)]


def reasons(*words: str) -> dict[str, str | None]:
    return {image.name: image.error for image in images(*words)}


def test_files_stay_in_the_order_of_the_words() -> None:
    write("b.png", "a.png", "c.txt")
    assert names("b.png", "c.txt", "a.png", "b.png") == ["b.png", "c.txt", "a.png", "b.png"]
    assert images("a.png")[0].data == b"a.png"


def test_a_folder_gives_its_images_at_any_depth_in_the_order_of_their_paths() -> None:
    write("d/b.PNG", "d/a/z.jpg", "d/a/b/y.webp", "d/c.tiff", "d/notes.txt", "d/._b.png", "d/.cache/x.png", "d/t.csv")
    assert names("d/") == ["d/a/b/y.webp", "d/a/z.jpg", "d/b.PNG", "d/c.tiff"]


def test_a_pattern_gives_files_folders_and_tables_in_the_order_of_their_names() -> None:
    write("x/2.png", "x/10.png", "x/1/3.png")
    Path("x/4.csv").write_text("path\n2.png\n")
    assert names("x/*") == ["x/1/3.png", "x/10.png", "x/2.png", "2.png"]
    assert names("**/3.png") == ["x/1/3.png"]


def test_a_file_whose_name_is_a_pattern_is_a_file() -> None:
    write("a[1].png", "a1.png")
    assert names("a[1].png") == ["a[1].png"]


def test_a_table_names_images_relative_to_its_folder() -> None:
    write("t/images/1.png", "t/2 é.png")
    rows = [("images/1.png", "3"), ("2 é.png", "4"), ("", "5"), ("gone.png", "6")]
    Path("t/a.csv").write_text("image,age\n" + "".join(f"{path},{age}\n" for path, age in rows))
    Path("t/b.tsv").write_text("age\tfile_name\n" + "".join(f"{age}\t{path}\n" for path, age in rows))
    Path("t/c.jsonl").write_text("".join(json.dumps({"path": path, "age": age}) + "\n" for path, age in rows))
    pq.write_table(pa.table({"file": [path or None for path, _ in rows]}), "t/d.parquet")
    for name in ("a.csv", "b.tsv", "c.jsonl", "d.parquet"):
        found = images(f"t/{name}")
        assert [image.name for image in found] == ["images/1.png", "2 é.png", f"{name}#2", "gone.png"]
        assert [image.data for image in found[:2]] == [b"t/images/1.png", "t/2 é.png".encode()]
        assert [image.error and image.error[:20] for image in found] == [
            None, None, "no image in the colu", "no such file"
        ]  # fmt: skip


def test_a_parquet_table_may_hold_the_images() -> None:
    pq.write_table(pa.table({"image": [b"one", None, b"three"]}), "bytes.parquet")
    assert [(image.name, image.data) for image in images("bytes.parquet")] == [
        ("bytes.parquet#0", b"one"), ("bytes.parquet#1", None), ("bytes.parquet#2", b"three")
    ]  # fmt: skip
    write("2.png")
    cells = [{"bytes": b"one", "path": "1.png"}, {"bytes": None, "path": "2.png"}, {"bytes": b"x", "path": None}]
    pq.write_table(pa.table({"n": [1, 2, 3], "image": pa.array(cells)}), "structs.parquet")
    found = images("structs.parquet")
    assert [(image.name, image.data) for image in found] == [
        ("1.png", b"one"), ("2.png", b"2.png"), ("structs.parquet#2", b"x")
    ]  # fmt: skip


def test_the_column_of_images_can_be_named() -> None:
    write("1.png", "2.png")
    Path("t.csv").write_text("image,photo\n1.png,2.png\n")
    assert names("t.csv") == ["1.png"]
    assert names("t.csv", column="photo") == ["2.png"]
    with pytest.raises(ConcordError, match=r"t\.csv: no column 'phot'\. Its columns: 'image', 'photo'\. Name"):
        images("t.csv", column="phot")


def test_a_table_without_a_column_of_images_is_an_error() -> None:
    Path("t.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ConcordError, match=r"t\.csv: no column of images \(image, path, file, file_name\)"):
        images("t.csv")
    Path("t.parquet").write_text("text")
    with pytest.raises(ConcordError, match=r"t\.parquet: cannot be read as Parquet"):
        images("t.parquet")
    with pytest.raises(ConcordError, match=r"gone\.csv: cannot be read: No such file"):
        images("gone.csv")
    os.mkfifo("pipe.csv")
    with pytest.raises(ConcordError, match=r"pipe\.csv: not a file"):
        images("pipe.csv")


def test_what_cannot_be_read_has_its_reason() -> None:
    os.mkfifo("pipe.png")
    write("deep/a.png")
    Path("loop.png").symlink_to("loop.png")
    Path("big.png").touch()
    os.truncate("big.png", (1 << 30) + 1)
    found = reasons("gone.png", "pipe.png", "loop.png", "big.png", "deep/a.png/b.png")
    assert found == {
        "gone.png": "no such file",
        "pipe.png": "not a file",
        "loop.png": "cannot be read (Too many levels of symbolic links)",
        "big.png": "larger than 1,024 MiB",
        "deep/a.png/b.png": "cannot be read (Not a directory)",
    }


def test_a_folder_in_a_table_is_no_image() -> None:
    Path("d").mkdir()
    Path("t.csv").write_text("path\n" + "d\n" * 3000)
    opened = len(os.listdir("/proc/self/fd"))
    assert set(reasons("t.csv").values()) == {"cannot be read (Is a directory)"}
    assert len(os.listdir("/proc/self/fd")) == opened


def test_a_name_that_is_not_unicode_is_escaped() -> None:
    os.makedirs(b"d")
    with open(b"d/\xff.png", "wb") as file:
        file.write(b"content")
    (image,) = images("d")
    assert (image.name, image.data) == (r"d/\udcff.png", b"content")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("empty", "empty: no image in this folder"),
        ("*.jpeg", r"\*\.jpeg: nothing matches this pattern"),
        ("gs://bucket/photos", "IMAGES: gs://... is not supported"),
        ("s3:/bucket", "IMAGES: not an S3 address; write s3://bucket/prefix"),
    ],
)
def test_a_word_that_names_nothing_is_an_error(word: str, message: str) -> None:
    Path("empty").mkdir()
    with pytest.raises(ConcordError, match=message):
        images(word)


@pytest.mark.usefixtures("gateway")
def test_a_bucket_gives_the_images_below_a_prefix(s3_server: S3Server, gateway: Gateway) -> None:
    for key in ("predict/b/2.png", "predict/a.png", "predict/notes.txt", "predict2/c.png"):
        s3_server.put(key, key.encode())
    found = images("s3://open/predict")
    assert [(image.name, image.data) for image in found] == [
        ("s3://open/predict/a.png", b"predict/a.png"), ("s3://open/predict/b/2.png", b"predict/b/2.png")
    ]  # fmt: skip
