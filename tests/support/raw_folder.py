"""A small raw input of real files, images and a CSV, which tests modify to produce errors."""

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from components.settings import Settings, load_settings

ROOT = Path(__file__).parents[2]
SHARED_DATA = ROOT.parent / "shared" / "data"

# Label -> number of images. With many: 12, few: 5, max_per_label: 4, the balanced rule leaves 32, 12 and 3 in train,
# since the hashes of the images that are drawn from this seed on divide the nine rarest evenly.
COUNTS = {10: 40, 50: 20, 90: 9}
FIRST_SEED = 7600
TASK = {"low": 0, "high": 100, "resolution": 1, "bin_width": 1, "many": 12, "few": 5}
INGEST = {
    "source": "folder",
    "csv": "labels.csv",
    "image_column": "image",
    "target_column": "reading",
    "id_column": None,
    "image_folder": None,
    "release": None,
    "split": "balanced",
    "split_column": None,
    "subject_column": None,
    "max_per_label": 4,
    "max_quarantined": 0,
}
VALIDATE = {
    "min_imbalance": 5,
    "max_test_imbalance": 2,
    "max_val_imbalance": 2,
    "max_unseen": 0.05,
    "min_rows_per_shot": 3,
    "min_side": 8,
    "near_bits": 10,
}
PUBLISHED = {"estimator": "sampled", "reward": "ccc", "balance": 0}


def encoded(seed: int, format: str = "PNG", size: int = 12) -> bytes:
    """An encoded noise image that depends on the seed."""
    pixels = np.random.default_rng(seed).integers(0, 255, (size, size, 3), dtype=np.uint8)
    return saved(Image.fromarray(pixels), format)


def photograph(seed: int, width: int = 300, height: int = 200) -> Image.Image:
    """An image of smooth noise."""
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def saved(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    """The image encoded by Pillow."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


class RawFolder:
    """`FOLDER/labels.csv` and `FOLDER/images/`, initially valid.

    Attributes:
        rows: the table's records, [image, reading]; row k is on line k + 2.
    """

    def __init__(self, folder: Path) -> None:
        """Writes a valid raw input."""
        self.folder = folder
        (folder / "images").mkdir(parents=True)
        labels = [label for label, count in COUNTS.items() for _ in range(count)]
        self.rows = [[f"images/{k:03d}.png", str(label)] for k, label in enumerate(labels)]
        for k, (image, _) in enumerate(self.rows):
            (folder / image).write_bytes(encoded(FIRST_SEED + k))
        self.write()

    def write(self, header: Iterable[str] = ("image", "reading"), encoding: str = "utf-8") -> None:
        """Writes the table with the current rows."""
        with open(self.folder / "labels.csv", "w", encoding=encoding, newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([header, *self.rows])


def write_params(path: Path, **sections: dict[str, Any]) -> Settings:
    """Writes the repository's params.yaml with settings for a `RawFolder` and for CCC-GRPO as published, with further
    changes, and loads it."""
    raw = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for changes in ({"task": TASK, "ingest": INGEST, "validate": VALIDATE, "grpo": PUBLISHED}, sections):
        for section, values in changes.items():
            raw[section] |= values
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return load_settings(path)


def content(folder: Path) -> dict[str, bytes]:
    """Relative path -> content of every file below the folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
