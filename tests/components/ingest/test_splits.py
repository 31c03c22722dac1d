"""The balanced rule and the split by subject."""

import csv
import hashlib
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.ingest.splits import balanced_splits, shuffle_key, subject_splits
from components.shared.rows.rows import SPLITS
from tests.support.raw_folder import SHARED_DATA


@given(st.lists(st.integers(0, 4), max_size=120), st.integers(1, 12))
def test_each_bin_gives_a_third_up_to_the_limit_to_val_and_to_test(bins: list[int], limit: int) -> None:
    splits = balanced_splits([f"row {i}" for i in range(len(bins))], bins, limit)
    counts = Counter(zip(bins, splits, strict=True))
    for bin, total in Counter(bins).items():
        share = min(total // 3, limit)
        assert [counts[bin, split] for split in SPLITS] == [total - 2 * share, share, share]


@given(st.permutations(range(30)))
def test_the_split_of_a_row_does_not_depend_on_the_order_of_rows(order: list[int]) -> None:
    ids, bins = [f"images/{i}.png" for i in range(30)], [i % 3 for i in range(30)]
    unshuffled = dict(zip(ids, balanced_splits(ids, bins, 3), strict=True))
    shuffled = balanced_splits([ids[i] for i in order], [bins[i] for i in order], 3)
    assert {ids[i]: split for i, split in zip(order, shuffled, strict=True)} == unshuffled


def test_the_shuffled_order_is_fixed() -> None:
    """A change of the order would silently move test images to train in a new version of the code."""
    ids = [f"images/{i}.png" for i in range(9)]
    assert shuffle_key("é", "split") == hashlib.sha256("split\0é".encode()).digest()
    # Computed independently, with printf "split\\0images/$i.png" | sha256sum, and sorted.
    pinned = [4, 7, 5, 0, 1, 2, 8, 6, 3]
    assert sorted(range(9), key=lambda i: shuffle_key(ids[i], "split")) == pinned
    splits = balanced_splits(ids, [0] * 9, max_per_label=2)
    assert [splits[i] for i in pinned] == ["val"] * 2 + ["test"] * 2 + ["train"] * 5


def test_shuffles_for_two_purposes_are_independent() -> None:
    ids = [str(i) for i in range(200)]
    by_split = sorted(ids, key=lambda id: shuffle_key(id, "split"))
    by_order = sorted(ids, key=lambda id: shuffle_key(id, "order"))
    in_both_halves = set(by_split[:100]) & set(by_order[:100])
    assert 30 < len(in_both_halves) < 70


def test_the_balanced_rule_gives_the_published_split_sizes_of_agedb() -> None:
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


People = list[tuple[str, int]]  # person and label of each row


def people(seed: int, count: int, images: int, labels: int) -> People:
    """Rows of persons who each have several similar ages; low ages are more common."""
    rng = random.Random(seed)
    rows = []
    for k in range(count):
        age = min(int(rng.expovariate(4 / labels)), labels - 1)
        for _ in range(rng.randint(1, images)):
            rows.append((f"person {k}", min(max(age + rng.randint(-2, 2), 0), labels - 1)))
    return rows


def split_of(rows: People, limit: int) -> list[str]:
    return subject_splits([who for who, _ in rows], [bin for _, bin in rows], limit)


@given(st.integers(0, 2**16), st.integers(1, 40), st.integers(1, 12), st.integers(1, 8))
def test_no_subject_is_in_two_splits_and_train_has_every_label(seed: int, count: int, images: int, limit: int) -> None:
    rows = people(seed, count, images, 12)
    splits_of: dict[str, set[str]] = {}
    for (who, _), split in zip(rows, split_of(rows, limit), strict=True):
        splits_of.setdefault(who, set()).add(split)
    assert all(len(splits) == 1 for splits in splits_of.values())
    in_train = {bin for (_, bin), split in zip(rows, split_of(rows, limit), strict=True) if split == "train"}
    assert in_train == {bin for _, bin in rows}


@given(st.permutations(range(60)))
def test_the_subject_split_does_not_depend_on_the_order_of_rows(order: list[int]) -> None:
    rows = people(1, 25, 5, 8)[:60]
    unshuffled = dict(zip(rows, split_of(rows, 4), strict=True))
    shuffled = [rows[i] for i in order if i < len(rows)]
    assert dict(zip(shuffled, split_of(shuffled, 4), strict=True)) == unshuffled


def test_subjects_with_one_row_each_give_the_counts_of_the_balanced_rule() -> None:
    rows = [(f"person {k}", k % 7 if k < 90 else 7) for k in range(100)]
    bins = [bin for _, bin in rows]
    rule = Counter(zip(bins, balanced_splits([who for who, _ in rows], bins, 4), strict=True))
    assert Counter(zip(bins, split_of(rows, 4), strict=True)) == rule


def test_the_split_by_subject_is_close_to_the_balanced_rule() -> None:
    rows = people(0, 500, 12, 40)
    splits = split_of(rows, 10)
    total = Counter(bin for _, bin in rows)
    for split in ("val", "test"):
        actual = Counter(bin for (_, bin), assigned in zip(rows, splits, strict=True) if assigned == split)
        wanted = {bin: min(count // 3, 10) for bin, count in total.items()}
        met = sum(min(actual[bin], want) for bin, want in wanted.items())
        assert met > 0.95 * sum(wanted.values())
        assert actual.total() - met < 0.35 * sum(wanted.values())


def test_a_few_subjects_with_many_rows_fill_all_splits() -> None:
    rows = [(f"device {k}", bin) for k in range(4) for bin in range(5) for _ in range(100)]
    assert set(split_of(rows, 10)) == {"train", "val", "test"}
