"""Rows of one picture: seen by every pixel, though most are only looked at quickly."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from components.shared.rows.rows import SPLITS, Row, ShardWriter
from components.validate import image_scan as looks
from components.validate.duplicates import suspects
from components.validate.tables import row_table
from tests.support.raw_folder import photograph, saved, write_params

SIZE = (192, 160)


def picture(seed: int) -> Image.Image:
    return photograph(seed, *SIZE)


def jpeg(image: Image.Image, **options: Any) -> bytes:
    return saved(image, "JPEG", **{"quality": 90} | options)


def contents(folder: Path, images: list[bytes]) -> list[str]:
    """What the table holds of images, all but the last two in train."""
    folder.mkdir(exist_ok=True)
    for split, some in zip(SPLITS, (images[:-2], images[-2:-1], images[-1:]), strict=True):
        with ShardWriter(folder, split, shard_mb=1) as writer:
            for number, image in enumerate(some):
                writer.add(Row(f"{split} {number}", image, 1.0, "?", f"t.csv:{number}"))
    table = row_table(folder, write_params(folder / "params.yaml").task)
    assert "reduced" not in table
    return table["content"].tolist()


def stamped(data: bytes) -> bytes:
    """The same JPEG file with a comment."""
    note = b"a note"
    return data[:2] + b"\xff\xfe" + (len(note) + 2).to_bytes(2, "big") + note + data[2:]


def test_copies_are_one_and_others_are_others(tmp_path: Path) -> None:
    first, second = jpeg(picture(0)), jpeg(picture(1))
    ordered = jpeg(picture(0), optimize=True)  # the same coefficients in other bytes
    found = contents(tmp_path, [first, second, stamped(first), ordered, jpeg(picture(2)), second])
    assert ordered != first
    assert found[0] == found[2] == found[3]
    assert found[1] == found[5]
    assert len(set(found)) == 3


def test_pictures_that_differ_where_the_quick_look_does_not_reach_are_two(tmp_path: Path) -> None:
    """A fine pattern that averages to nothing in blocks of two pixels."""
    base = np.full((160, 192), 128, np.uint8)
    fine = base.copy()
    fine[::2, ::2], fine[1::2, ::2], fine[::2, 1::2], fine[1::2, 1::2] = 118, 138, 138, 118
    marked = [Image.fromarray(shades) for shades in (base, fine)]
    for image in marked:
        image.paste(200, (16, 16, 96, 80))  # not of one shade
    files = [jpeg(image, quality=100) for image in marked]
    quick = [looks.look(data, reduce=True).content for data in files]
    assert quick[0] == quick[1]
    found = contents(tmp_path, [*files, files[0], files[1]])
    assert found[0] == found[2] != found[1] == found[3]


def test_one_picture_in_two_formats_is_one(tmp_path: Path) -> None:
    images = [jpeg(picture(seed)) for seed in range(4)]
    decoded = saved(Image.open(io.BytesIO(images[1])).convert("RGB"))
    found = contents(tmp_path, [*images, saved(picture(7)), decoded])
    assert found[5] == found[1]
    assert len(set(found)) == 5


def test_one_shade_in_two_formats_is_one(tmp_path: Path) -> None:
    """Such have no perceptual hash."""
    flat = Image.new("RGB", SIZE, "gray")
    found = contents(tmp_path, [jpeg(flat), jpeg(Image.new("RGB", SIZE, "white")), saved(flat), jpeg(picture(0))])
    assert found[0] == found[2]
    assert len(set(found)) == 3


def test_in_processes_as_in_this_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [jpeg(picture(seed % 5)) for seed in range(8)]
    inside = contents(tmp_path, images)
    monkeypatch.setattr(looks, "FEW", 0)
    assert contents(tmp_path, images) == inside
    assert len(set(inside)) == 5


def test_where_nothing_may_be_the_same_nothing_is_looked_at_again() -> None:
    table = pd.DataFrame({"reduced": True, "content": ["a", "b", None], "hash": [b"\0" * 32, b"\0" * 32, None]})
    assert not suspects(table).any()
    table["content"] = ["a", "a", None]
    assert suspects(table).tolist() == [True, True, False]
    assert not suspects(table.assign(reduced=False)).any()
