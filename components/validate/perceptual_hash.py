"""Pictures that look alike: a perceptual hash of each, and for each picture the most alike of an earlier split.

The hash is that of the low frequencies (pHash): 32 x 32 grey, its cosine transform, of which the 16 x 16 lowest
coefficients are held against their median. Of the 256 bits some 4 to 10 change where a picture is saved again in good
quality, in another size, or a little lighter, and more than 20 in poor quality; other pictures of one kind, gauges of
64 pixels, differ in 26 at the least. It finds copies, not crops or turned ones.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE, KEPT = 32, 16
BITS = KEPT * KEPT
FLAT = 2.0  # grey levels of spread under which there is nothing to compare
LARGE = 64  # members of a bucket above which they are compared block by block
BLOCK = 1 << 22  # distances computed at once
# Row k: cosine of frequency k over the pixels.
_COSINES = np.cos(np.pi * np.outer(np.arange(KEPT), np.arange(SIDE) + 0.5) / SIDE).astype(np.float32)
# Buckets take their bits from all over the picture: neighbouring ones agree in many pictures of one kind.
_SHUFFLE = np.random.default_rng(0).permutation(BITS)
_NONE = np.iinfo(np.int64).max

Hashes = NDArray[np.uint64]


def thumbnail(image: Image.Image, of: tuple[int, int] | None = None) -> bytes:
    """What the hash is taken of: `(SIDE, SIDE)` grey bytes.

    Args:
        image: the picture.
        of: width and height that it has in full, where `image` is a half, a quarter or an eighth of it: the last row
            and column of that lie in part beyond the picture's end.
    """
    part = round(of[0] / image.width) if of else 1
    box = (0, 0, of[0] / part, of[1] / part) if of else None
    # The gap: a large picture is averaged by whole blocks first, at half the price.
    return (
        (image if image.mode == "L" else image.convert("L"))
        .resize((SIDE, SIDE), Image.Resampling.BILINEAR, box, reducing_gap=2.0)
        .tobytes()
    )


def perceptual_hashes(thumbnails: Sequence[bytes]) -> list[bytes | None]:
    """32 bytes for each `thumbnail`; None for a picture of one shade, which looks like any other of that kind."""
    grey = np.frombuffer(b"".join(thumbnails), np.uint8).reshape(-1, SIDE, SIDE).astype(np.float32)
    waves = (_COSINES @ grey @ _COSINES.T).reshape(-1, BITS)
    middle = np.partition(waves, BITS // 2, axis=1)[:, BITS // 2, None]
    hashes = np.packbits(waves > middle, axis=1)
    flat = grey.std(axis=(1, 2)) < FLAT
    return [None if shade else hash.tobytes() for shade, hash in zip(flat, hashes, strict=True)]


def nearest_in_earlier_split(
    hashes: list[bytes], splits: NDArray[np.integer], bits: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each picture one of an earlier split that differs least, if it differs in at most `bits` bits.

    Two hashes that differ in no more than k bits agree on at least one of k + 1 parts: only pictures that agree on a
    part are compared. So the time is about linear in their number; at worst, where a part is the same in all of them,
    it is a comparison of every two pictures of different splits. 200,000 hashes without such parts take 1 s.

    Args:
        hashes: `(N,)` of `perceptual_hashes`, none of them None.
        splits: `(N,)` number of the split: 0 is the earliest.
        bits: the most that alike pictures differ in.

    Returns:
        Index of the other picture `(N,)`, -1 where there is none, and in how many bits the two differ `(N,)`.
    """
    if not hashes:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    whole = np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, BITS // 8)
    # Equal pictures of a split once: a thousand copies are one comparison.
    marked = np.hstack([whole, splits.astype(np.uint8)[:, None]])
    _, first, back = np.unique(marked.view(f"V{marked.shape[1]}").ravel(), return_index=True, return_inverse=True)
    words, of = np.ascontiguousarray(whole[first]).view(np.uint64), np.asarray(splits)[first]
    best = np.full(len(first), _NONE)  # distance above, other's place below 32 bits
    for part in np.array_split(_SHUFFLE, max(bits + 1, 4)):
        _compare_buckets(_keys(words.view(np.uint8), part), words, of, bits, best)
    found = best != _NONE
    other = np.where(found, first[best & 0xFFFFFFFF & np.where(found, -1, 0)], -1)
    return other[back], np.where(found, best >> 32, -1)[back]


def _keys(hashes: NDArray[np.uint8], bits: NDArray[np.int64]) -> Hashes:
    """Some bits of each hash, 64 at most, as one number."""
    keys = np.zeros(len(hashes), np.uint64)
    for bit in bits:
        keys = keys << np.uint64(1) | hashes[:, bit // 8] >> np.uint8(7 - bit % 8) & np.uint8(1)
    return keys


def _compare_buckets(keys: Hashes, words: Hashes, of: NDArray[np.integer], bits: int, best: NDArray[np.int64]) -> None:
    """Compares all of different splits that have one key; lowers `best` where a nearer one is found."""
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(keys[order]) != 0])
    sizes = np.diff(np.r_[starts, len(order)])
    small = np.repeat(sizes <= LARGE, sizes)
    ends = np.repeat(starts + sizes, sizes)
    places = np.arange(len(order))
    for step in range(1, min(int(sizes.max()), LARGE)):
        at = places[small & (places + step < ends)]
        _lower(order[at], order[at + step], words, of, bits, best)
    for start, size in zip(starts[sizes > LARGE], sizes[sizes > LARGE], strict=True):
        _compare_block_by_block(order[start : start + size], words, of, bits, best)


def _compare_block_by_block(
    bucket: NDArray[np.int64], words: Hashes, of: NDArray[np.integer], bits: int, best: NDArray[np.int64]
) -> None:
    for split in np.unique(of[bucket])[1:]:
        later, earlier = bucket[of[bucket] == split], bucket[of[bucket] < split]
        rows = max(BLOCK // len(earlier), 1)
        for start in range(0, len(later), rows):
            some = later[start : start + rows]
            # One word of the four first: it alone settles nearly all.
            a, b = np.nonzero(np.bitwise_count(words[some, :1] ^ words[earlier, 0]) <= bits)
            _lower(some[a], earlier[b], words, of, bits, best)


def _lower(
    a: NDArray[np.int64], b: NDArray[np.int64], words: Hashes, of: NDArray[np.integer], bits: int,
    best: NDArray[np.int64],
) -> None:  # fmt: skip
    apart = of[a] != of[b]
    a, b = a[apart], b[apart]
    distance = np.bitwise_count(words[a] ^ words[b]).sum(axis=1, dtype=np.int64)
    near = distance <= bits
    a, b, distance = a[near], b[near], distance[near]
    later, earlier = np.where(of[a] > of[b], a, b), np.where(of[a] > of[b], b, a)
    np.minimum.at(best, later, distance << 32 | earlier)
