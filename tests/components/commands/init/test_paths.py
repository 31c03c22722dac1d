"""Expressions that read numbers, subjects and splits from paths."""

import doctest
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.commands.init import fill
from components.commands.init.fill import question_for, unit_for
from components.commands.init.paths import guess_pattern, split_of_parts, word_before
from components.errors import ConcordError

LABELS = [3, 17, 35, 60, 17, 3, 35, 17, 60, 3, 3, 17]


def paths(form: str, *labels: float) -> list[str]:
    return [
        form.format(label=label, k=k, split="train" if k % 3 else "test") for k, label in enumerate(labels or LABELS)
    ]


@pytest.mark.parametrize(
    "form",
    [
        "age-{label}_{k:04d}.jpg",
        "age{label}_{k:04d}.jpg",
        "{k:04d}_AGE={label}.png",
        "img_{k:04d}-age_{label}.png",
        "{label}/{k:04d}.jpg",
        "{split}/{label}/{k:04d}.jpg",
        "{label}_{k}_x.jpg",
        "x{k}_{label}.jpg",
        "{split}/photo {k} depth {label}.jpg",
    ],
)
def test_obvious_patterns_are_guessed(form: str) -> None:
    names = paths(form)
    matches = [re.search(guess_pattern(names, "photos"), name) for name in names]
    assert [float(match["target"]) for match in matches if match] == LABELS
    if "{split}" in form:
        assert {match["split"] for match in matches if match} == {"train", "test"}


@given(
    st.sampled_from(["age-{label}_{k}.jpg", "{label}/{k}.jpg", "depth={label} {k}.png"]),
    st.lists(st.integers(-50, 500).map(lambda n: n / 10), min_size=3, max_size=6, unique=True),
)
def test_decimals_and_signs_are_read(form: str, labels: list[float]) -> None:
    if form.startswith("age-"):
        labels = [abs(label) + 100 * k for k, label in enumerate(labels)]
    names = paths(form, *labels * 4)
    matches = [re.search(guess_pattern(names, "photos"), name) for name in names]
    assert [float(match["target"]) for match in matches if match] == labels * 4


def test_subjects_in_paths_are_guessed() -> None:
    names = [f"patient{k % 4}/age_{label}-{k}.png" for k, label in enumerate(LABELS)]
    match = re.search(guess_pattern(names, "photos"), names[5])
    assert match is not None
    assert match.groupdict() == {"subject": "1", "target": "3"}


def test_files_that_are_only_counted_are_an_error_that_names_the_flag() -> None:
    names = [f"img_{k:04d}.jpg" for k in range(40)]
    with pytest.raises(ConcordError, match=r"photos: no table, and no number found in .*'img_0000\.jpg'.*--pattern"):
        guess_pattern(names, "photos")


def test_two_possible_numbers_are_an_error_that_names_the_flag() -> None:
    names = [f"{label}/width-{k % 5}.jpg" for k, label in enumerate(LABELS)]
    with pytest.raises(ConcordError, match=r"photos: the number could be any of .*--pattern"):
        guess_pattern(names, "photos")


def test_a_well_known_word_wins() -> None:
    names = [f"{label}/age-{k % 5}.jpg" for k, label in enumerate(LABELS)]
    assert word_before(guess_pattern(names, "photos")) == "age"


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train/1.png", "validation/1.png"], ["train", "validation"]),
        (["data/train-00000-of-00002.parquet/17", "data/test-00000-of-00001.parquet/3"], ["train", "test"]),
        (["x/train.parquet/1", "x/test.parquet/1"], ["train", "test"]),
        (["train/1.png", "train/2.png"], None),
        (["train/1.png", "more/2.png"], None),
        (["1.png", "2.png"], None),
    ],
)
def test_splits_are_read_from_paths_that_all_name_one(names: list[str], splits: list[str] | None) -> None:
    pattern = split_of_parts(names)
    found = pattern and [match["split"] for name in names if (match := re.search(pattern, name))]
    assert found == splits


def test_the_examples_hold() -> None:
    assert doctest.testmod(fill).attempted == 1
    assert doctest.testmod(fill).failed == 0


@pytest.mark.parametrize(
    ("name", "question", "unit"),
    [
        ("age", "How old is the person?", "years"),
        ("bone_age", "What is the bone age?", ""),
        ("Strokes", "How many strokes are there?", ""),
        ("age_months", "What is the age in months?", "months"),
        ("Reading", "What is the reading?", ""),
        ("target", "What number does the image show?", ""),
        ("pH", "What is the pH?", ""),
    ],
)
def test_question_and_unit_come_from_the_name(name: str, question: str, unit: str) -> None:
    assert (question_for(name), unit_for(name)) == (question, unit)
