"""Perceptual hashes of images, and the search for the nearest image of an earlier split.

The hash is pHash: the image is scaled to 32 x 32 grey pixels, and each of the 16 x 16 lowest coefficients of its cosine
transform gives one bit, whether it is above their median. Of the 256 bits, about 4 to 10 change when an image is saved
again in good quality, in another size or slightly brighter, and more than 20 in poor quality. Different images of one
kind (gauges of 64 pixels) differ in at least 26 bits. The hash finds copies, but not crops or rotations.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE, KEPT = 32, 16
BITS = KEPT * KEPT
MIN_CONTRAST = 2.0  # standard deviation in grey levels below which an image has nothing to compare
LARGE_BUCKET = 64  # above this many members, a bucket is compared block by block
BLOCK_SIZE = 1 << 22  # distances computed at once
# Row k: cosine of frequency k over the pixels.
_COSINES = np.cos(np.pi * np.outer(np.arange(KEPT), np.arange(SIDE) + 0.5) / SIDE).astype(np.float32)
# The bits of a bucket key come from the whole image, because neighbouring bits agree in many images of one kind.
_SHUFFLE = np.random.default_rng(0).permutation(BITS)
_NONE = np.iinfo(np.int64).max

Hashes = NDArray[np.uint64]


def thumbnail(image: Image.Image, full_size: tuple[int, int] | None = None) -> bytes:
    """Returns the `(SIDE, SIDE)` grey bytes from which the hash is computed.

    Args:
        image: the image.
        full_size: width and height at full resolution if `image` is reduced to a half, a quarter or an eighth: its last
            row and column then lie partly outside the full image.
    """
    factor = round(full_size[0] / image.width) if full_size else 1
    box = (0, 0, full_size[0] / factor, full_size[1] / factor) if full_size else None
    # reducing_gap averages a large image by whole blocks first, at half the cost.
    return (
        (image if image.mode == "L" else image.convert("L"))
        .resize((SIDE, SIDE), Image.Resampling.BILINEAR, box, reducing_gap=2.0)
        .tobytes()
    )


def perceptual_hashes(thumbnails: Sequence[bytes]) -> list[bytes | None]:
    """Returns 32 bytes for each `thumbnail`; None for an image of one shade, because all of those look alike."""
    grey = np.frombuffer(b"".join(thumbnails), np.uint8).reshape(-1, SIDE, SIDE).astype(np.float32)
    coefficients = (_COSINES @ grey @ _COSINES.T).reshape(-1, BITS)
    median = np.partition(coefficients, BITS // 2, axis=1)[:, BITS // 2, None]
    hashes = np.packbits(coefficients > median, axis=1)
    flat = grey.std(axis=(1, 2)) < MIN_CONTRAST
    return [None if is_flat else hash.tobytes() for is_flat, hash in zip(flat, hashes, strict=True)]


def nearest_in_earlier_split(
    hashes: list[bytes], splits: NDArray[np.integer], max_bits: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Finds for each image the nearest image of an earlier split, if their hashes differ in at most `max_bits` bits.

    Two hashes that differ in at most k bits agree on at least one of k + 1 parts, so only images that agree on a part
    are compared. The time is about linear in the number of images; in the worst case, where all agree on a part, all
    pairs of different splits are compared. 200,000 hashes without such parts take 1 s.

    Args:
        hashes: `(N,)` from `perceptual_hashes`, none of them None.
        splits: `(N,)` number of the split: 0 is the earliest.
        max_bits: largest distance that counts.

    Returns:
        Index of the nearest image `(N,)`, -1 without one, and its distance in bits `(N,)`, -1 without one.
    """
    if not hashes:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    all_bytes = np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, BITS // 8)
    # Equal images of one split are compared once: a thousand copies are one comparison.
    with_split = np.hstack([all_bytes, splits.astype(np.uint8)[:, None]])
    _, first, inverse = np.unique(
        with_split.view(f"V{with_split.shape[1]}").ravel(), return_index=True, return_inverse=True
    )
    words, split = np.ascontiguousarray(all_bytes[first]).view(np.uint64), np.asarray(splits)[first]
    best = np.full(len(first), _NONE)  # distance in the upper bits, index of the other image in the lower 32
    for part in np.array_split(_SHUFFLE, max(max_bits + 1, 4)):
        _compare_buckets(_keys(words.view(np.uint8), part), words, split, max_bits, best)
    matched = best != _NONE
    other = np.where(matched, first[best & 0xFFFFFFFF & np.where(matched, -1, 0)], -1)
    return other[inverse], np.where(matched, best >> 32, -1)[inverse]


def _keys(hashes: NDArray[np.uint8], bits: NDArray[np.int64]) -> Hashes:
    """Returns the selected bits of each hash (at most 64) as one number."""
    keys = np.zeros(len(hashes), np.uint64)
    for bit in bits:
        keys = keys << np.uint64(1) | hashes[:, bit // 8] >> np.uint8(7 - bit % 8) & np.uint8(1)
    return keys


def _compare_buckets(
    keys: Hashes, words: Hashes, split: NDArray[np.integer], max_bits: int, best: NDArray[np.int64]
) -> None:
    """Compares all images of different splits with equal keys, and updates `best`."""
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(keys[order]) != 0])
    sizes = np.diff(np.r_[starts, len(order)])
    small = np.repeat(sizes <= LARGE_BUCKET, sizes)
    ends = np.repeat(starts + sizes, sizes)
    positions = np.arange(len(order))
    for step in range(1, min(int(sizes.max()), LARGE_BUCKET)):
        at = positions[small & (positions + step < ends)]
        _update_best(order[at], order[at + step], words, split, max_bits, best)
    for start, size in zip(starts[sizes > LARGE_BUCKET], sizes[sizes > LARGE_BUCKET], strict=True):
        _compare_large_bucket(order[start : start + size], words, split, max_bits, best)


def _compare_large_bucket(
    bucket: NDArray[np.int64], words: Hashes, split: NDArray[np.integer], max_bits: int, best: NDArray[np.int64]
) -> None:
    for number in np.unique(split[bucket])[1:]:
        later, earlier = bucket[split[bucket] == number], bucket[split[bucket] < number]
        rows = max(BLOCK_SIZE // len(earlier), 1)
        for start in range(0, len(later), rows):
            block = later[start : start + rows]
            # The first of the four words alone excludes nearly all pairs.
            a, b = np.nonzero(np.bitwise_count(words[block, :1] ^ words[earlier, 0]) <= max_bits)
            _update_best(block[a], earlier[b], words, split, max_bits, best)


def _update_best(
    a: NDArray[np.int64],
    b: NDArray[np.int64],
    words: Hashes,
    split: NDArray[np.integer],
    max_bits: int,
    best: NDArray[np.int64],
) -> None:
    """Computes the distances of the pairs `(a, b)` of different splits, and lowers `best` of the later image."""
    different = split[a] != split[b]
    a, b = a[different], b[different]
    distance = np.bitwise_count(words[a] ^ words[b]).sum(axis=1, dtype=np.int64)
    near = distance <= max_bits
    a, b, distance = a[near], b[near], distance[near]
    later, earlier = np.where(split[a] > split[b], a, b), np.where(split[a] > split[b], b, a)
    np.minimum.at(best, later, distance << 32 | earlier)
