"""Small data sets in common forms: grey images, labelled with their brightness, few of them bright."""

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

# Label -> number of images.
COUNTS = {10: 72, 20: 60, 30: 48, 40: 36, 50: 24, 60: 18, 70: 12, 80: 9, 90: 6}
TEST_SHARE = 3  # of a label's images, at most 8, one in this many is for testing where the data has splits


@dataclass(frozen=True)
class Picture:
    """One labelled image.

    Attributes:
        number: unique.
        label: its brightness, in percent.
        split: train or test.
        subject: the person or device; each has one image of some label.
        data: the image file.
    """

    number: int
    label: int
    split: str
    subject: str
    data: bytes


def pictures(format: str = "PNG") -> Iterator[Picture]:
    """Yields all images; 16 to 32 pixels wide and high."""
    number = 0
    for label, count in COUNTS.items():
        for k in range(count):
            split = "test" if k < min(count // TEST_SHARE, 8) else "train"
            yield Picture(number, label, split, f"p{number // 3:03d}", grey(label, number, format))
            number += 1


def grey(label: float, seed: int, format: str = "PNG") -> bytes:
    """A noisy grey image of brightness 2.55 * label."""
    random = np.random.default_rng(seed)
    width, height = random.integers(16, 33, 2)
    pixels = 2.55 * label + random.normal(0, 4, (height, width, 3))
    out = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(out, format)
    return out.getvalue()


def table_with_semicolons(folder: Path) -> Path:
    """`FOLDER/labels.csv` with split names of its own, and the images beside it; returns the table."""
    with open(folder / "labels.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow(["photo", "age", "part", "comment"])
        for picture in pictures():
            name = f"{picture.number:04d}.png"
            (folder / name).write_bytes(picture.data)
            writer.writerow([name, picture.label, picture.split.title(), "a, b"])
    return folder / "labels.csv"


def tabs_with_subjects(folder: Path) -> Path:
    """`FOLDER/readings.tsv` with subjects and bare file names, and the images in a folder; returns the folder."""
    (folder / "photos").mkdir()
    with open(folder / "readings.tsv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(["filename", "patient_id", "bone age", "height"])
        for picture in pictures():
            name = f"{picture.number:04d}.png"
            (folder / "photos" / name).write_bytes(picture.data)
            writer.writerow([name, picture.subject, picture.label / 10, picture.number % 7])
    return folder


def image_folder(folder: Path) -> Path:
    """A folder for each split with metadata.jsonl, as the library datasets reads it; returns the folder."""
    for picture in pictures():
        part = folder / picture.split
        part.mkdir(exist_ok=True)
        (part / f"{picture.number:04d}.png").write_bytes(picture.data)
        with open(part / "metadata.jsonl", "a", encoding="utf-8") as file:
            row = {"file_name": f"{picture.number:04d}.png", "value": picture.label / 4}
            file.write(json.dumps(row) + "\n")
    return folder


def parquet_with_images(folder: Path) -> Path:
    """`FOLDER/data/SPLIT-00000-of-00001.parquet` with an image column, as the hub has data sets; returns the folder."""
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    (folder / "data").mkdir()
    for split in ("train", "test"):
        rows = [picture for picture in pictures() if picture.split == split]
        columns = {
            "image": pa.array([{"bytes": row.data, "path": None} for row in rows], image),
            "label": pa.array([row.label / 10 for row in rows], pa.float32()),
        }
        pq.write_table(pa.table(columns), folder / "data" / f"{split}-00000-of-00001.parquet", row_group_size=50)
    return folder


def numbers_in_names(folder: Path) -> Path:
    """Images alone, such as age-35_0012.jpg; returns the folder."""
    for picture in pictures("JPEG"):
        (folder / f"age-{picture.label}_{picture.number:04d}.jpg").write_bytes(picture.data)
    return folder


SHAPES: Mapping[str, Callable[[Path], Path]] = {
    "table": table_with_semicolons,
    "subjects": tabs_with_subjects,
    "imagefolder": image_folder,
    "parquet": parquet_with_images,
    "names": numbers_in_names,
}
