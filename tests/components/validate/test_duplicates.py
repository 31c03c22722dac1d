"""Identical pictures are found by all their pixels, though most images are decoded only at reduced size."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from components.shared.rows.rows import SPLITS, Row, ShardWriter
from components.validate import image_scan
from components.validate.duplicates import duplicate_candidates
from components.validate.tables import row_table
from tests.support.raw_folder import photograph, saved, write_params

SIZE = (192, 160)


def picture(seed: int) -> Image.Image:
    return photograph(seed, *SIZE)


def jpeg(image: Image.Image, **options: Any) -> bytes:
    return saved(image, "JPEG", **{"quality": 90} | options)


def contents(folder: Path, images: list[bytes]) -> list[str]:
    """The `content` hashes of images; all but the last two are in train."""
    folder.mkdir(exist_ok=True)
    for split, in_split in zip(SPLITS, (images[:-2], images[-2:-1], images[-1:]), strict=True):
        with ShardWriter(folder, split, shard_mb=1) as writer:
            for number, image in enumerate(in_split):
                writer.add(Row(f"{split} {number}", image, 1.0, "?", f"t.csv:{number}"))
    table = row_table(folder, write_params(folder / "params.yaml").task)
    assert "reduced" not in table
    return table["content"].tolist()


def with_comment(data: bytes) -> bytes:
    """Adds a comment to a JPEG file."""
    comment = b"a comment"
    return data[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + data[2:]


def test_copies_have_equal_hashes_and_different_pictures_do_not(tmp_path: Path) -> None:
    first, second = jpeg(picture(0)), jpeg(picture(1))
    reordered = jpeg(picture(0), optimize=True)  # the same coefficients in other bytes
    found = contents(tmp_path, [first, second, with_comment(first), reordered, jpeg(picture(2)), second])
    assert reordered != first
    assert found[0] == found[2] == found[3]
    assert found[1] == found[5]
    assert len(set(found)) == 3


def test_pictures_that_differ_only_at_full_resolution_are_different(tmp_path: Path) -> None:
    """A fine pattern that vanishes when blocks of two pixels are averaged."""
    base = np.full((160, 192), 128, np.uint8)
    fine = base.copy()
    fine[::2, ::2], fine[1::2, ::2], fine[::2, 1::2], fine[1::2, 1::2] = 118, 138, 138, 118
    marked = [Image.fromarray(shades) for shades in (base, fine)]
    for image in marked:
        image.paste(200, (16, 16, 96, 80))  # not of one shade
    files = [jpeg(image, quality=100) for image in marked]
    reduced = [image_scan.probe_image(data, reduce=True).content for data in files]
    assert reduced[0] == reduced[1]
    found = contents(tmp_path, [*files, files[0], files[1]])
    assert found[0] == found[2] != found[1] == found[3]


def test_picture_in_two_formats_has_one_hash(tmp_path: Path) -> None:
    images = [jpeg(picture(seed)) for seed in range(4)]
    decoded = saved(Image.open(io.BytesIO(images[1])).convert("RGB"))
    found = contents(tmp_path, [*images, saved(picture(7)), decoded])
    assert found[5] == found[1]
    assert len(set(found)) == 5


def test_image_of_one_shade_in_two_formats_has_one_hash(tmp_path: Path) -> None:
    """Such images have no perceptual hash."""
    flat = Image.new("RGB", SIZE, "gray")
    found = contents(tmp_path, [jpeg(flat), jpeg(Image.new("RGB", SIZE, "white")), saved(flat), jpeg(picture(0))])
    assert found[0] == found[2]
    assert len(set(found)) == 3


def test_worker_processes_give_the_same_hashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [jpeg(picture(seed % 5)) for seed in range(8)]
    in_this_process = contents(tmp_path, images)
    monkeypatch.setattr(image_scan, "MIN_ROWS_FOR_PROCESSES", 0)
    assert contents(tmp_path, images) == in_this_process
    assert len(set(in_this_process)) == 5


def test_rows_without_possible_duplicates_are_not_decoded_again() -> None:
    table = pd.DataFrame({"reduced": True, "content": ["a", "b", None], "hash": [b"\0" * 32, b"\0" * 32, None]})
    assert not duplicate_candidates(table).any()
    table["content"] = ["a", "a", None]
    assert duplicate_candidates(table).tolist() == [True, True, False]
    assert not duplicate_candidates(table.assign(reduced=False)).any()
