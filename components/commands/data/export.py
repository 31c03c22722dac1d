"""`python -m components data export`: writes the rows in the format of the paper's release, for use by other trainers.

--images files (as in the authors' repository):
    OUT/train.jsonl, val.json, test.json      annotations
    OUT/images/SPLIT/00000000.jpg             images, their bytes unchanged

--images shards (as in the authors' data set on the hub):
    OUT/SPLIT/SPLIT-000000.tar                WebDataset shards, each image with its annotation

The source `release` reads both formats. The same rows give the same bytes.
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
from components.shared.io.progress import with_progress
from components.shared.rows.rows import SPLITS, read_rows
from components.shared.scoring.answers import decimals

FILES = {"train": "train.jsonl", "val": "val.json", "test": "test.json"}
# Image formats: offset and value of the magic bytes, and file name suffix.
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
class _ExportedRow:
    """A row to export.

    Attributes:
        id: of the row.
        name: file name of the image.
        image: its bytes.
        question: what the model is asked.
        target: the answer as text.
    """

    id: str
    name: str
    image: bytes
    question: str
    target: str

    def as_conversation(self, path: str) -> dict[str, Any]:
        """The annotation of a training row: a conversation."""
        turns = [{"from": "human", "value": f"<image>{self.question}"}, {"from": "gpt", "value": self.target}]
        return {"id": self.id, "image": path, "conversations": turns}

    def as_problem(self, path: str) -> dict[str, Any]:
        """The annotation of a val or test row: a problem and its solution."""
        return {"id": self.id, "image": path, "problem": self.question, "solution": json.loads(self.target)}


def export_release(ingest: Path, out: Path, task: Task, images: str, shard_mb: int) -> dict[str, int]:
    """Writes annotations and images of every split to `out`, and replaces its previous content.

    Args:
        ingest: folder of the row shards.
        out: output folder.
        task: its resolution determines the number of decimals of an answer.
        images: `files`, or `shards`, which contain the annotations too.
        shard_mb: size limit of a shard in MiB; a single larger image gets its own shard.

    Returns:
        Split -> number of rows.

    Raises:
        ConcordError: there are no row shards, or the format of an image is unknown.
    """
    if not ingest.is_dir():
        raise ConcordError(f"{ingest}: no such folder. Make it first: python -m components ingest")
    counts = {}
    with new_folder(out) as folder:
        for split in SPLITS:
            rows = with_progress(_rows_to_export(ingest, split, task), f"exporting {split}")
            write = _write_files if images == "files" else _write_shards
            counts[split] = write(folder, split, rows, shard_mb << 20)
    return counts


def _rows_to_export(ingest: Path, split: str, task: Task) -> Iterator[_ExportedRow]:
    number = 0
    for batch in read_rows(ingest, split, batch_size=32):
        for row in batch.select(["id", "image", "target", "question"]).to_pylist():
            data = row["image"]["bytes"]
            name = f"{number:08d}{_suffix(data, row['id'])}"
            yield _ExportedRow(row["id"], name, data, row["question"], _format_target(row["target"], task))
            number += 1


def _format_target(target: float, task: Task) -> str:
    """The target with the decimals of the task's resolution, or with more if it needs them."""
    text = f"{target:.{decimals(task.resolution)}f}"
    return text if float(text) == target else repr(target)


def _suffix(data: bytes, id: str) -> str:
    for at, magic, suffix in _MAGIC:
        if data[at : at + len(magic)] == magic:
            return suffix
    raise ConcordError(f"the image of row {id!r} has an unknown format, judged by its first bytes; run validate.")


def _write_files(folder: Path, split: str, rows: Iterator[_ExportedRow], limit: int) -> int:
    """Writes image files and the annotation file that names them; returns the number of rows."""
    del limit  # applies to shards only
    (folder / "images" / split).mkdir(parents=True)
    count = 0
    with open(folder / FILES[split], "w", encoding="utf-8", newline="\n") as file:
        as_list = FILES[split].endswith(".json")
        for row in rows:
            path = posixpath.join("images", split, row.name)
            (folder / path).write_bytes(row.image)
            annotation = row.as_problem(path) if as_list else row.as_conversation(path)
            _write_annotation(file, annotation, as_list, first=count == 0)
            count += 1
        if as_list:
            file.write("\n]\n")
    return count


def _write_annotation(file: TextIO, annotation: dict[str, Any], as_list: bool, first: bool) -> None:
    text = json.dumps(annotation, ensure_ascii=False)
    if as_list:
        file.write(f"[\n{text}" if first else f",\n{text}")
    else:
        file.write(f"{text}\n")


def _write_shards(folder: Path, split: str, rows: Iterator[_ExportedRow], limit: int) -> int:
    """Writes tar shards with an annotation beside each image; returns the number of rows."""
    (folder / split).mkdir()
    count = shards = 0
    tar: tarfile.TarFile | None = None
    for row in rows:
        text = json.dumps(row.as_problem(row.name), ensure_ascii=False).encode()
        if tar is None or tar.offset + len(row.image) + len(text) + 4 * tarfile.BLOCKSIZE > limit:
            if tar is not None:
                tar.close()
            path = folder / split / f"{split}-{shards:06d}.tar"
            tar, shards = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT), shards + 1  # noqa: SIM115
        for name, data in ((row.name, row.image), (f"{posixpath.splitext(row.name)[0]}.json", text)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        tar.members = []  # type: ignore[attr-defined]  # else tarfile keeps all of them in memory
        count += 1
    if tar is not None:
        tar.close()
    return count
