"""The expectations, in Great Expectations' terms and in words, each with what to do where it is not met."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from components.settings import Task, Validate
from components.shared.regression.shots import SHOTS
from components.validate.images import MODES


@dataclass(frozen=True)
class Check:
    """One expectation.

    Attributes:
        name: unique; the key in result.json.
        table: fields, rows or summary.
        expectation: a class of great_expectations.expectations. A name, since the import takes seconds.
        arguments: of that class.
        words: what is expected, for people.
        remedy: what to do where it is not so.
        tell: column whose value explains a row that does not meet it; None: the checked column's.
    """

    name: str
    table: str
    expectation: str
    arguments: Mapping[str, Any]
    words: str
    remedy: str
    tell: str | None = None


def field_checks() -> list[Check]:
    """That the shards have the fields that every step reads."""
    return [
        Check(
            "schema",
            "fields",
            "ExpectColumnPairValuesToBeEqual",
            {"column_A": "expected", "column_B": "found"},
            "every shard has the fields and types of the row schema",
            "The shards come from another version of ingest: run the ingest step again.",
        )
    ]


def row_checks(task: Task) -> list[Check]:
    """What holds for each row."""
    mend = "Correct or remove these rows in the raw input and run ingest again"
    return [
        _values("id_present", "id", "NotBeNull", {}, "every row has an id", f"{mend}."),
        _values("id_unique", "id", "BeUnique", {}, "ids are unique over all splits", f"{mend}."),
        _values("target_present", "target", "NotBeNull", {}, "every row has a target", f"{mend}."),
        _values(
            "target_finite", "finite", "BeInSet", {"value_set": [True]}, "every target is finite", f"{mend}.", "target"
        ),
        _values(
            "target_in_range",
            "target",
            "BeBetween",
            {"min_value": task.low, "max_value": task.high},
            f"every target lies in the task's range, {task.low:g} to {task.high:g} {task.unit}".rstrip(),
            f"{mend}, or widen task.low and task.high.",
        ),
        _values(
            "target_on_step",
            "off_step",
            "BeBetween",
            {"max_value": 0.001},
            f"every target is a whole number of steps of {task.resolution:g} {task.unit}".rstrip(),
            "Set task.resolution to the step in which the labels come, or round them: answers come in such steps.",
            tell="target",
        ),
        _values(
            "image_decodes",
            "decodes",
            "BeInSet",
            {"value_set": [True]},
            "every image decodes completely",
            "Replace these files by whole ones, or remove their rows, and run ingest again.",
            tell="fault",
        ),
        _values(
            "image_mode",
            "mode",
            "BeInSet",
            {"value_set": list(MODES)},
            "every image becomes 8-bit RGB without harm",
            "Convert these files to 8-bit grey or RGB: what their values mean is not known.",
        ),
    ]


def summary_checks(task: Task, limits: Validate) -> list[Check]:
    """What holds for the splits as wholes."""
    return [
        _figure(
            "images_in_two_splits",
            {"max_value": 0},
            "no image, by its pixels, is in two splits",
            "Remove the repeated rows from the raw input and run ingest again: test images must be new to the model.",
        ),
        _figure(
            "train_imbalance",
            {"min_value": limits.min_imbalance},
            f"train is long-tailed: fullest label over emptiest, in rows, is at least {limits.min_imbalance:g}",
            "Lower validate.min_imbalance if the data are as they should be; on balanced data plain SFT is enough.",
        ),
        _figure(
            "test_imbalance",
            {"max_value": limits.max_test_imbalance},
            f"test is balanced: fullest label over the mean one, in rows, is at most {limits.max_test_imbalance:g}",
            "Set ingest.split: balanced or lower ingest.max_per_label, or raise validate.max_test_imbalance.",
        ),
        *(
            _figure(
                f"test_rows_{shot}",
                {"min_value": limits.min_rows_per_shot},
                f"test has at least {limits.min_rows_per_shot} {shot}-shot rows ({_limits(shot, task)} in train)",
                _SHOT_REMEDY[shot],
            )
            for shot in SHOTS
        ),
    ]


_SHOT_REMEDY = {
    "many": "Give test rows of common labels; or lower task.many, or validate.min_rows_per_shot.",
    "medium": "Give test rows of such labels; or move task.few and task.many, or lower validate.min_rows_per_shot.",
    "few": (
        "The rare values are what is judged. Give test rows of rare labels (ingest.split: balanced does, where a label "
        "has three rows); or raise task.few or task.bin_width, or lower validate.min_rows_per_shot."
    ),
}


def _limits(shot: str, task: Task) -> str:
    words = {"many": f"more than {task.many}", "medium": f"{task.few} to {task.many}", "few": f"fewer than {task.few}"}
    return f"labels with {words[shot]} rows"


def _values(
    name: str, column: str, kind: str, arguments: dict[str, Any], words: str, remedy: str, tell: str | None = None
) -> Check:
    return Check(name, "rows", f"ExpectColumnValuesTo{kind}", {"column": column, **arguments}, words, remedy, tell)


def _figure(column: str, limits: dict[str, float], words: str, remedy: str) -> Check:
    # The largest of one row's values: the expectation that shows the figure itself as observed.
    return Check(column, "summary", "ExpectColumnMaxToBeBetween", {"column": column, **limits}, words, remedy)
