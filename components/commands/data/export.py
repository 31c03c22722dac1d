"""`python -m components data export`: the rows in the form of the paper's release, so that other trainers can use them.

    OUT/train.jsonl, val.json, test.json      annotations, as the authors' repository has them
    OUT/images/SPLIT/00000000.jpg             the images, byte for byte (--images files)
    OUT/SPLIT/SPLIT-000000.tar                or in WebDataset shards, annotation beside image, as their hub has them

The source `release` reads either of them back. The same rows give the same bytes.
"""

import io
import json
import posixpath
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from components.errors import ConcordError
from components.settings import Task
from components.shared.io.atomic import new_folder
from components.shared.io.progress import counted
from components.shared.rows.rows import SPLITS, read_rows
from components.shared.scoring.answers import decimals

FILES = {"train": "train.jsonl", "val": "val.json", "test": "test.json"}
# What a file begins with, where in it, and how such files are called.
_MAGIC = (
    (0, b"\xff\xd8\xff", ".jpg"),
    (0, b"\x89PNG", ".png"),
    (8, b"WEBP", ".webp"),
    (0, b"GIF8", ".gif"),
    (0, b"BM", ".bmp"),
    (0, b"II*\0", ".tif"),
    (0, b"MM\0*", ".tif"),
)


@dataclass(frozen=True, slots=True)
class _Exported:
    """A row on its way out: `name` is the image's file name, `target` the answer as text."""

    id: str
    name: str
    image: bytes
    question: str
    target: str

    def training(self, path: str) -> dict[str, Any]:
        """As a conversation."""
        turns = [{"from": "human", "value": f"<image>{self.question}"}, {"from": "gpt", "value": self.target}]
        return {"id": self.id, "image": path, "conversations": turns}

    def judging(self, path: str) -> dict[str, Any]:
        """As a problem and its solution."""
        return {"id": self.id, "image": path, "problem": self.question, "solution": json.loads(self.target)}


def export_release(ingest: Path, out: Path, task: Task, images: str, shard_mb: int) -> dict[str, int]:
    """Writes annotations and images of every split to `out`, anew.

    Args:
        ingest: row shards.
        task: its resolution says how many decimals an answer has.
        images: files, or shards, in which the annotations then are as well.
        shard_mb: size limit of a shard; one image may be larger.

    Returns:
        Split -> rows.

    Raises:
        ConcordError: there are no row shards, or an image is of no kind that is known.
    """
    if not ingest.is_dir():
        raise ConcordError(f"{ingest}: no such folder. Make it first: python -m components ingest")
    counts = {}
    with new_folder(out) as folder:
        for split in SPLITS:
            rows = counted(_exported(ingest, split, task), f"exporting {split}")
            write = _write_files if images == "files" else _write_shards
            counts[split] = write(folder, split, rows, shard_mb << 20)
    return counts


def _exported(ingest: Path, split: str, task: Task) -> Iterator[_Exported]:
    number = 0
    for batch in read_rows(ingest, split, batch_size=32):
        for row in batch.select(["id", "image", "target", "question"]).to_pylist():
            data = row["image"]["bytes"]
            name = f"{number:08d}{_suffix(data, row['id'])}"
            yield _Exported(row["id"], name, data, row["question"], _number(row["target"], task))
            number += 1


def _number(target: float, task: Task) -> str:
    """With the decimals of the task's step, or with as many as it takes where a target lies between two steps."""
    text = f"{target:.{decimals(task.resolution)}f}"
    return text if float(text) == target else repr(target)


def _suffix(data: bytes, id: str) -> str:
    for at, magic, suffix in _MAGIC:
        if data[at : at + len(magic)] == magic:
            return suffix
    raise ConcordError(f"the image of row {id!r} is of no kind that is known, by its first bytes; run validate.")


def _write_files(folder: Path, split: str, rows: Iterator[_Exported], limit: int) -> int:
    """Image files and the annotation file that names them."""
    del limit  # a shard's
    (folder / "images" / split).mkdir(parents=True)
    count = 0
    with open(folder / FILES[split], "w", encoding="utf-8", newline="\n") as file:
        as_list = FILES[split].endswith(".json")
        for row in rows:
            path = posixpath.join("images", split, row.name)
            (folder / path).write_bytes(row.image)
            _annotate(file, row.judging(path) if as_list else row.training(path), as_list, first=count == 0)
            count += 1
        if as_list:
            file.write("\n]\n")
    return count


def _annotate(file: TextIO, annotation: dict[str, Any], as_list: bool, first: bool) -> None:
    text = json.dumps(annotation, ensure_ascii=False)
    if as_list:
        file.write(f"[\n{text}" if first else f",\n{text}")
    else:
        file.write(f"{text}\n")


def _write_shards(folder: Path, split: str, rows: Iterator[_Exported], limit: int) -> int:
    """Shards with the annotation beside each image, in tar's plainest form."""
    (folder / split).mkdir()
    count = shards = 0
    tar: tarfile.TarFile | None = None
    for row in rows:
        text = json.dumps(row.judging(row.name), ensure_ascii=False).encode()
        if tar is None or tar.offset + len(row.image) + len(text) + 4 * tarfile.BLOCKSIZE > limit:
            if tar is not None:
                tar.close()
            path = folder / split / f"{split}-{shards:06d}.tar"
            tar, shards = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT), shards + 1  # noqa: SIM115
        for name, data in ((row.name, row.image), (f"{posixpath.splitext(row.name)[0]}.json", text)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        tar.members = []  # type: ignore[attr-defined]  # else it keeps them all
        count += 1
    if tar is not None:
        tar.close()
    return count
