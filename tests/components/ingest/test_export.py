"""The export in the release's format: the source `release` reads the same rows back."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from components.__main__ import main
from components.shared.rows.rows import SPLITS, Row, ShardWriter, read_table
from tests.support.raw_folder import RawFolder, content, encoded, write_params

INGEST = ["ingest", "--params", "params.yaml", "--data", "data", "--out"]
EXPORT = ["data", "export", "--params", "params.yaml", "--ingest", "artifacts/ingest", "--out", "export"]
ANNOTATION_FILES = {"train": "train.jsonl", "val": "val.json", "test": "test.json"}


@pytest.fixture
def ingested(store: Path) -> Path:
    write_params(store / "params.yaml", task={"question": "How much, in °?"})
    RawFolder(store / "data")
    assert main([*INGEST, "artifacts/ingest"]) == 0
    return store


def rows_in(folder: str) -> dict[str, list[tuple[Any, ...]]]:
    columns = ["image", "target", "question"]
    tables = {split: read_table(Path(folder), split, columns).to_pylist() for split in SPLITS}
    return {split: sorted((r["image"]["bytes"], r["target"], r["question"]) for r in t) for split, t in tables.items()}


@pytest.mark.parametrize("images", ["files", "shards"])
def test_exported_rows_are_read_back_unchanged(ingested: Path, images: str) -> None:
    assert main([*EXPORT, "--images", images]) == 0
    release = {
        "subset": None,
        "hub": None,
        **(ANNOTATION_FILES if images == "files" else dict.fromkeys(ANNOTATION_FILES)),
    }
    ingest = {"source": "release", "split": "given", "release": release}
    write_params(ingested / "params.yaml", ingest=ingest, task={"question": "How much, in °?"})
    assert main(["ingest", "--params", "params.yaml", "--data", "export", "--out", "artifacts/again"]) == 0
    assert rows_in("artifacts/again") == rows_in("artifacts/ingest")


def test_annotations_have_the_format_of_the_release(ingested: Path) -> None:
    assert main(EXPORT) == 0
    train = [json.loads(line) for line in Path("export/train.jsonl").read_text(encoding="utf-8").splitlines()]
    test = json.loads(Path("export/test.json").read_text(encoding="utf-8"))
    assert (len(train), len(test)) == (47, 11)
    first = train[0]
    assert first == {
        "id": first["id"],
        "image": "images/train/00000000.png",
        "conversations": [
            {"from": "human", "value": "<image>How much, in °?"},
            {"from": "gpt", "value": first["conversations"][1]["value"]},
        ],
    }
    assert first["conversations"][1]["value"] in ("10", "50", "90")
    assert test[3]["problem"] == "How much, in °?"
    assert test[3]["solution"] in (10, 50, 90)
    assert (Path("export") / test[3]["image"]).read_bytes() == (ingested / "data" / test[3]["id"]).read_bytes()


@pytest.mark.parametrize("images", ["files", "shards"])
def test_the_same_rows_give_the_same_bytes(ingested: Path, images: str) -> None:
    assert main([*EXPORT, "--images", images]) == 0
    first = content(ingested / "export")
    assert main([*EXPORT, "--images", images]) == 0
    assert content(ingested / "export") == first


def test_shards_keep_the_size_limit_and_contain_pairs(ingested: Path) -> None:
    noise = encoded(0, "PNG", size=300)
    Path("big").mkdir()
    with ShardWriter(Path("big"), "train", 8) as writer:
        for k in range(9):
            writer.add(Row(f"r{k}", noise, k, "?", ""))
    for split in ("val", "test"):
        with ShardWriter(Path("big"), split, 8) as writer:
            writer.add(Row("one", noise, 1, "?", ""))
    arguments = [argument.replace("artifacts/ingest", "big") for argument in EXPORT]
    assert main([*arguments, "--images", "shards", "--shard-mb", "1"]) == 0
    shards = sorted(Path("export/train").iterdir())
    assert len(shards) >= 3
    names = []
    for path in shards:
        assert path.stat().st_size <= 2**20
        with tarfile.open(path) as tar:
            names += tar.getnames()
            assert all(info.mtime == 0 for info in tar)
    assert names == [f"{k:08d}{suffix}" for k in range(9) for suffix in (".png", ".json")]


@pytest.mark.parametrize(
    ("format", "suffix"),
    [("JPEG", ".jpg"), ("PNG", ".png"), ("WEBP", ".webp"), ("GIF", ".gif"), ("BMP", ".bmp"), ("TIFF", ".tif")],
)
def test_file_names_have_the_suffix_of_the_image_format(store: Path, format: str, suffix: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, format)
    write_params(store / "params.yaml", task={"resolution": 0.1, "bin_width": 0.1})
    (store / "artifacts" / "ingest").mkdir(parents=True)
    for split in SPLITS:
        with ShardWriter(store / "artifacts" / "ingest", split, 8) as writer:
            writer.add(Row("text.jpg\n", buffer.getvalue(), 6.1, "?", ""))
    assert main(EXPORT) == 0
    (row,) = json.loads(Path("export/test.json").read_text())
    assert (row["image"], row["solution"]) == (f"images/test/00000000{suffix}", 6.1)
    assert (store / "export" / row["image"]).read_bytes() == buffer.getvalue()


def test_an_unknown_image_format_and_a_missing_folder_are_errors(
    store: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_params(store / "params.yaml")
    assert main(EXPORT) == 1
    assert "artifacts/ingest: no such folder. Make it first: python -m components ingest" in capfd.readouterr().err
    (store / "artifacts" / "ingest").mkdir(parents=True)
    with ShardWriter(store / "artifacts" / "ingest", "train", 8) as writer:
        writer.add(Row("a.jpg", b"some text", 1, "?", ""))
    assert main(EXPORT) == 1
    assert "the image of row 'a.jpg' has an unknown format" in capfd.readouterr().err
    assert not Path("export").exists()
