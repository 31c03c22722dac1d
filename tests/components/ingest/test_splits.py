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


def rows_of(seed: int, counts: list[int]) -> tuple[list[str], list[int]]:
    """Contents and bins of rows in a random order."""
    rows = [(f"{seed} {bin} {k}", bin) for bin, count in enumerate(counts) for k in range(count)]
    random.Random(seed).shuffle(rows)
    return [content for content, _ in rows], [bin for _, bin in rows]


def test_a_bin_gives_a_third_of_its_rows_to_val_and_to_test_on_average() -> None:
    contents, bins = rows_of(0, [15] * 400)
    counts = Counter(balanced_splits(contents, bins, 30))
    # A share of 6,000 rows that are drawn with probability 1/3 lies within 0.025 of it (4 standard deviations).
    assert [counts[split] / 6000 for split in SPLITS] == pytest.approx([1 / 3] * 3, abs=0.025)


@given(st.integers(0, 2**16), st.lists(st.integers(1, 120), min_size=1, max_size=5), st.integers(1, 12))
def test_a_bin_has_rows_in_every_split_and_at_most_the_limit_in_two(seed: int, sizes: list[int], limit: int) -> None:
    contents, bins = rows_of(seed, sizes)
    counts = Counter(zip(bins, balanced_splits(contents, bins, limit), strict=True))
    for bin, size in enumerate(sizes):
        in_bin = [counts[bin, split] for split in SPLITS]
        assert min(in_bin) >= 1 if size >= 3 else in_bin == [size, 0, 0]
        assert max(in_bin[1:]) <= limit
        if size > 60 + 6 * limit:
            assert in_bin[1:] == [limit, limit]


@given(st.integers(0, 2**16), st.lists(st.integers(1, 60), min_size=1, max_size=5), st.integers(1, 12), st.data())
def test_a_row_that_was_trained_on_moves_only_where_its_bin_was_short(
    seed: int, sizes: list[int], limit: int, data: st.DataObject
) -> None:
    contents, bins = rows_of(seed, sizes)
    known = data.draw(st.integers(1, len(contents)))
    before = balanced_splits(contents[:known], bins[:known], limit)
    after = balanced_splits(contents, bins, limit)[:known]
    thirds: dict[int, list[int]] = {}
    for content, bin in zip(contents[:known], bins, strict=False):
        thirds.setdefault(bin, []).append(shuffle_key(content, "split")[0] * 3 >> 8)
    for bin, old, new in zip(bins, before, after, strict=False):
        if old == "train" != new:
            assert len(thirds[bin]) < 3 or 2 not in thirds[bin]


def test_growth_below_the_limit_moves_nothing() -> None:
    contents, bins = rows_of(3, [60] * 20)
    before = balanced_splits(contents[:1000], bins[:1000], 40)
    assert balanced_splits(contents, bins, 40)[:1000] == before


def test_equal_images_of_a_label_get_the_same_split() -> None:
    contents = [b"%d" % (k // 3) for k in range(300)]
    splits = balanced_splits(contents, [0] * 300, 7)
    assert all(len(set(splits[k : k + 3])) == 1 for k in range(0, 300, 3))


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
    # The hashes begin with 38, 78, 7c, 8a, 97, b1, f0, f2, f5 (hexadecimal); the thirds end at 55 and aa.
    splits = balanced_splits(ids, [0] * 9, max_per_label=2)
    assert [splits[i] for i in pinned] == ["test", "val", "val"] + ["train"] * 6


def test_shuffles_for_two_purposes_are_independent() -> None:
    ids = [str(i) for i in range(200)]
    by_split = sorted(ids, key=lambda id: shuffle_key(id, "split"))
    by_order = sorted(ids, key=lambda id: shuffle_key(id, "order"))
    in_both_halves = set(by_split[:100]) & set(by_order[:100])
    assert 30 < len(in_both_halves) < 70


def test_the_balanced_rule_gives_about_the_published_split_sizes_of_agedb() -> None:
    table = SHARED_DATA / "agedb" / "agedb.csv"
    if not table.is_file():
        pytest.skip(f"{table} is not there")
    with open(table, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    ages = [int(row["age"]) for row in rows]
    ours = balanced_splits([row["path"] for row in rows], ages, 30)
    published = [row["split"] for row in rows]
    assert Counter(published) == {"train": 12208, "val": 2140, "test": 2140}
    assert Counter(ours)["val"] == pytest.approx(2140, rel=0.03)
    assert Counter(ours)["test"] == pytest.approx(2140, rel=0.03)
    by_age, rule = Counter(zip(ages, ours, strict=True)), Counter(zip(ages, published, strict=True))
    common = [age for age, count in Counter(ages).items() if count > 180]
    assert len(common) > 30
    assert all(by_age[age, split] == rule[age, split] == 30 for age in common for split in ("val", "test"))


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


def test_new_subjects_move_hardly_any_subject() -> None:
    rows = people(4, 600, 6, 40)
    known = 5 * len(rows) // 6
    before, after = split_of(rows[:known], 10), split_of(rows, 10)[:known]
    moved = Counter((old, new) for old, new in zip(before, after, strict=True) if old != new)
    assert moved["val", "test"] == moved["test", "val"] == 0
    assert moved["train", "val"] + moved["train", "test"] < 0.005 * known


def test_the_split_by_subject_is_close_to_the_balanced_rule() -> None:
    rows = people(0, 500, 12, 40)
    splits = split_of(rows, 10)
    total = Counter(bin for _, bin in rows)
    for split in ("val", "test"):
        actual = Counter(bin for (_, bin), assigned in zip(rows, splits, strict=True) if assigned == split)
        wanted = {bin: min(count // 3, 10) for bin, count in total.items()}
        met = sum(min(actual[bin], want) for bin, want in wanted.items())
        assert met > 0.7 * sum(wanted.values())
        assert actual.total() - met < 0.15 * sum(wanted.values())


def test_a_few_subjects_with_many_rows_fill_all_splits() -> None:
    rows = [(f"device {k}", bin) for k in range(4) for bin in range(5) for _ in range(100)]
    assert set(split_of(rows, 10)) == {"train", "val", "test"}
