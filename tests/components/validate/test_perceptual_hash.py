"""Perceptual hashes: what they are robust to, and the search compared with a loop over all pairs."""

import io
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from components.validate.perceptual_hash import nearest_in_earlier_split, perceptual_hashes, thumbnail
from tests.support.raw_folder import SHARED_DATA, encoded

NEAR = 10  # as in params.yaml


def photographs() -> list[Image.Image]:
    files = sorted(Path(SHARED_DATA, "meter-digits", "images").rglob("*.jpg"))[::300]
    if not files:
        pytest.skip("the data set meter-digits is missing")
    return [Image.open(path).convert("RGB") for path in files]


def perceptual_hash(image: Image.Image) -> bytes | None:
    return perceptual_hashes([thumbnail(image)])[0]


def distance(one: bytes | None, other: bytes | None) -> int:
    assert one is not None
    assert other is not None
    return (int.from_bytes(one) ^ int.from_bytes(other)).bit_count()


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def test_different_photographs_of_one_kind_are_far_apart() -> None:
    hashes = [perceptual_hash(image) for image in photographs()]
    assert min(distance(a, b) for k, a in enumerate(hashes) for b in hashes[:k]) > NEAR


def test_photograph_saved_again_is_near() -> None:
    near = [distance(perceptual_hash(image), perceptual_hash(jpeg(image, 92))) <= NEAR for image in photographs()]
    assert np.mean(near) > 0.9


def test_image_of_one_shade_has_no_hash() -> None:
    assert perceptual_hash(Image.new("RGB", (50, 40), (9, 90, 200))) is None
    assert perceptual_hash(Image.open(io.BytesIO(encoded(1, size=64)))) is not None


def by_loop(hashes: list[bytes], splits: list[int], bits: int) -> list[int]:
    """The smallest distance to a hash of an earlier split; -1 if it is above `bits`."""
    found = []
    for hash, split in zip(hashes, splits, strict=True):
        distances = [distance(hash, h) for h, s in zip(hashes, splits, strict=True) if s < split]
        smallest = min(distances, default=257)
        found.append(smallest if smallest <= bits else -1)
    return found


@given(st.integers(0, 2**32), st.integers(0, 16), st.booleans())
def test_search_equals_a_loop_over_all_pairs(seed: int, bits: int, crowded: bool) -> None:
    """Few originals with some bits flipped; crowded: too many share a key, so they are compared block by block."""
    rng = np.random.default_rng(seed)
    count = 150 if crowded else 40
    originals = np.unpackbits(rng.integers(0, 256, (1 if crowded else 6, 32), np.uint8), axis=1)
    noisy = originals[rng.integers(0, len(originals), count)]
    for row in noisy:
        row[rng.integers(0, 256, rng.integers(0, 14))] ^= 1
    hashes = [row.tobytes() for row in np.packbits(noisy, axis=1)]
    splits = rng.integers(0, 3, count)
    other, found = nearest_in_earlier_split(hashes, splits, bits)
    assert found.tolist() == by_loop(hashes, splits.tolist(), bits)
    for k, j in enumerate(other):
        if j >= 0:
            assert splits[j] < splits[k]
            assert distance(hashes[k], hashes[j]) == found[k]
        else:
            assert found[k] == -1


def test_empty_and_single_inputs_have_no_match() -> None:
    assert [part.tolist() for part in nearest_in_earlier_split([], np.empty(0, int), 8)] == [[], []]
    assert nearest_in_earlier_split([bytes(32)], np.array([2]), 8)[0].tolist() == [-1]


def seconds(count: int) -> float:
    rng = np.random.default_rng(0)
    hashes = [row.tobytes() for row in rng.integers(0, 256, (count, 32), np.uint8)]
    start = time.process_time()
    nearest_in_earlier_split(hashes, rng.choice(3, count, p=[0.8, 0.1, 0.1]), NEAR)
    return time.process_time() - start


def test_search_time_is_about_linear() -> None:
    assert seconds(40_000) < 16 * max(seconds(5_000), 0.02)


def test_many_copies_are_compared_once() -> None:
    hashes = [bytes(32)] * 60_000 + [b"\1" + bytes(31)] * 60_000
    other, found = nearest_in_earlier_split(hashes, np.repeat([0, 2], 60_000), NEAR)
    assert set(found[:60_000]) == {-1}
    assert set(found[60_000:]) == {1}
    assert other[-1] < 60_000
