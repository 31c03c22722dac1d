"""The halves of the validation split."""

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.shared.rows.rows import Row, ShardWriter
from components.shared.rows.validation import halves, tune_mask, tune_rows, tune_table


def digest(name: object) -> str:
    return hashlib.sha256(str(name).encode()).hexdigest()


def of_images(targets: list[float]) -> tuple[list[str], list[None]]:
    """A hash for each image, and no subjects."""
    return [digest(k) for k in range(len(targets))], [None] * len(targets)


@given(st.lists(st.integers(0, 5).map(float), max_size=60))
def test_each_label_is_divided_in_half(targets: list[float]) -> None:
    mask = halves(*(parts := of_images(targets))[:1], targets, parts[1])
    for label, count in Counter(targets).items():
        tune = sum(chosen for chosen, target in zip(mask, targets, strict=True) if target == label)
        assert abs(2 * tune - count) <= 1


def test_single_images_of_labels_go_to_both_halves() -> None:
    targets = [float(k) for k in range(400)]
    hashes, subjects = of_images(targets)
    assert 0.4 < halves(hashes, targets, subjects).mean() < 0.6


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(0, 4)), max_size=40), st.randoms())
def test_the_order_of_the_rows_does_not_matter(rows: list[tuple[int, int, int]], random: object) -> None:
    """Rows of label, image and subject; subject 0 is unknown."""

    def roles(order: list[int]) -> dict[int, bool]:
        mask = halves(
            [digest(rows[k][1]) for k in order],
            [float(rows[k][0]) for k in order],
            [f"person-{rows[k][2]}" if rows[k][2] else None for k in order],
        )
        return dict(zip(order, mask.tolist(), strict=True))

    order = list(range(len(rows)))
    first = roles(order)
    random.shuffle(order)  # type: ignore[attr-defined]
    assert roles(order) == first


def test_images_of_other_labels_change_nothing() -> None:
    targets = [1.0] * 9 + [2.0] * 6
    hashes, subjects = of_images(targets)
    alone = halves(hashes, targets, subjects)
    more = halves(
        [*(digest(f"other-{k}") for k in range(7)), *hashes], [0.0] * 3 + [3.0] * 4 + targets, [None] * 7 + subjects
    )
    np.testing.assert_array_equal(more[7:], alone)


def test_equal_images_and_images_of_a_subject_stay_together() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 40, 300)
    targets = rng.integers(0, 6, 300).astype(float).tolist()
    mask = halves([digest(k) for k in images], targets, [None] * 300)
    assert all(len(set(mask[images == k])) == 1 for k in set(images)), "also with two labels"
    people = [f"person-{k}" for k in images]
    mask = halves([digest(k) for k in range(300)], targets, people)
    assert all(len(set(mask[images == k])) == 1 for k in set(images))
    assert 0.3 < mask.mean() < 0.7


@pytest.mark.parametrize("subjects", [False, True])
def test_mask_table_and_rows_of_a_folder_agree(tmp_path: Path, subjects: bool) -> None:
    with ShardWriter(tmp_path, "val", 1, subjects) as shards:
        for k in range(23):
            person = f"person-{k % 4}" if subjects and k % 5 else None
            shards.add(Row(f"id-{k:02d}", f"image-{k}".encode(), float(k % 3), "?", "made", person))
    mask = tune_mask(tmp_path)
    expected = [f"id-{k:02d}" for k in range(23) if mask[k]]
    assert tune_table(tmp_path).column_names == ["id", "target"]
    assert tune_table(tmp_path)["id"].to_pylist() == expected
    for size in (1, 4, 256):
        batches = list(tune_rows(tmp_path, size))
        assert [id for batch in batches for id in batch.column("id").to_pylist()] == expected
        assert all(0 < batch.num_rows <= size for batch in batches)
    assert "image" in batches[0].schema.names
    assert 0 < mask.sum() < 23
