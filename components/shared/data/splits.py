"""Train, validation and test: the reference rule, and an order that depends on nothing but the ids.

Yang et al. (2021), "Delving into Deep Imbalanced Regression": of every label, shuffled, min(count // 3, limit) to
validation, as many to test, the rest to train. Here the shuffle is by SHA-256 of the id, so that a split is the same on
every platform, in every version, and in whatever order the rows come.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence


def shuffle_key(id: str, purpose: str) -> bytes:
    """Sort by it to shuffle: 32 bytes, uniform over ids, and unrelated from one purpose to another."""
    return hashlib.sha256(f"{purpose}\0{id}".encode()).digest()


def balanced_splits(ids: Sequence[str], bins: Iterable[int], max_per_label: int) -> list[str]:
    """The split of each row.

    Args:
        ids: `(N,)` unique.
        bins: `(N,)` label bin of each row.
        max_per_label: at most this many of a bin to val, and to test.

    Returns:
        `(N,)` train, val or test. A bin with fewer than three rows is in train alone.
    """
    members: dict[int, list[int]] = defaultdict(list)
    for index, bin in enumerate(bins):
        members[bin].append(index)
    splits = ["train"] * len(ids)
    for rows in members.values():
        rows.sort(key=lambda index: shuffle_key(ids[index], "split"))
        share = min(len(rows) // 3, max_per_label)
        for index in rows[:share]:
            splits[index] = "val"
        for index in rows[share : 2 * share]:
            splits[index] = "test"
    return splits
