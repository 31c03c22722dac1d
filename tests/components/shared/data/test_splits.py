"""The reference rule of balanced splits."""

import csv
import hashlib
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.shared.data.rows import SPLITS
from components.shared.data.splits import balanced_splits, shuffle_key
from tests.components.raw_folder import SHARED_DATA


@given(st.lists(st.integers(0, 4), max_size=120), st.integers(1, 12))
def test_each_bin_gives_a_third_up_to_the_limit_to_val_and_as_many_to_test(bins: list[int], limit: int) -> None:
    splits = balanced_splits([f"row {i}" for i in range(len(bins))], bins, limit)
    counts = Counter(zip(bins, splits, strict=True))
    for bin, total in Counter(bins).items():
        share = min(total // 3, limit)
        assert [counts[bin, split] for split in SPLITS] == [total - 2 * share, share, share]


@given(st.permutations(range(30)))
def test_the_split_of_a_row_does_not_depend_on_the_order_of_rows(order: list[int]) -> None:
    ids, bins = [f"images/{i}.png" for i in range(30)], [i % 3 for i in range(30)]
    straight = dict(zip(ids, balanced_splits(ids, bins, 3), strict=True))
    shuffled = balanced_splits([ids[i] for i in order], [bins[i] for i in order], 3)
    assert {ids[i]: split for i, split in zip(order, shuffled, strict=True)} == straight


def test_the_shuffle_is_the_same_for_ever() -> None:
    """Another order would silently move test images into train between two versions of the code."""
    ids = [f"images/{i}.png" for i in range(9)]
    assert shuffle_key("é", "split") == hashlib.sha256("split\0é".encode()).digest()
    # By hand: printf "split\\0images/$i.png" | sha256sum, sorted.
    pinned = [4, 7, 5, 0, 1, 2, 8, 6, 3]
    assert sorted(range(9), key=lambda i: shuffle_key(ids[i], "split")) == pinned
    splits = balanced_splits(ids, [0] * 9, max_per_label=2)
    assert [splits[i] for i in pinned] == ["val"] * 2 + ["test"] * 2 + ["train"] * 5


def test_two_purposes_shuffle_independently() -> None:
    ids = [str(i) for i in range(200)]
    by_split = sorted(ids, key=lambda id: shuffle_key(id, "split"))
    by_order = sorted(ids, key=lambda id: shuffle_key(id, "order"))
    half = set(by_split[:100]) & set(by_order[:100])
    assert 30 < len(half) < 70


def test_the_rule_gives_the_published_agedb_split_sizes() -> None:
    table = SHARED_DATA / "agedb" / "agedb.csv"
    if not table.is_file():
        pytest.skip(f"{table} is not there")
    with open(table, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    ages = [int(row["age"]) for row in rows]
    ours = balanced_splits([row["path"] for row in rows], ages, 30)
    published = [row["split"] for row in rows]
    assert Counter(ours) == {"train": 12208, "val": 2140, "test": 2140}
    assert Counter(zip(ages, ours, strict=True)) == Counter(zip(ages, published, strict=True))
