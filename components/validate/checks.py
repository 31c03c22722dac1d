"""The expectations, in Great Expectations' terms and in words, each with what to do where it is not met."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from components.settings import Severities, Severity, Task, Validate
from components.shared.scoring.shots import SHOTS
from components.validate.image_probe import PLAIN_MODES


@dataclass(frozen=True)
class Check:
    """One expectation.

    Attributes:
        name: unique; the key in result.json.
        table: fields, rows, summary or drift.
        expectation: a class of great_expectations.expectations. A name, since the import takes seconds.
        arguments: of that class.
        words: what is expected, for people.
        remedy: what to do where it is not so.
        tell: column whose value explains a row that does not meet it; None: the checked column's.
        severity: error or warning.
    """

    name: str
    table: str
    expectation: str
    arguments: Mapping[str, Any]
    words: str
    remedy: str
    tell: str | None = None
    severity: Severity = "error"


def weighed(checks: Sequence[Check], severities: Severities) -> list[Check]:
    """The checks with the severity that the settings give them; those that have none there are errors."""
    chosen = severities.model_dump()
    return [replace(check, severity=chosen.get(check.name, "error")) for check in checks]


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


def row_checks(task: Task, limits: Validate) -> list[Check]:
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
            {"value_set": list(PLAIN_MODES)},
            "every image is stored as 8-bit grey, palette or RGB",
            "Others are converted for the model: 16 bits to 8, CMYK to RGB, transparent to white. Look at the outcome.",
        ),
        _values(
            "image_size",
            "side",
            "BeBetween",
            {"min_value": limits.min_side},
            f"every image is at least {limits.min_side} pixels high and wide",
            f"{mend}, or lower validate.min_side.",
        ),
    ]


def leak_checks(limits: Validate) -> list[Check]:
    """That test images are new to the model, and that an image has one target."""
    return [
        _figure(
            "images_in_two_splits",
            {"max_value": 0},
            "no image, by its pixels, is in two splits",
            "Remove the repeated rows from the raw input and run ingest again: test images must be new to the model.",
        ),
        _figure(
            "near_duplicates",
            {"max_value": 0},
            f"no val or test image looks like one of an earlier split (hashes {limits.near_bits} of 256 bits apart)",
            "Look at the pairs. Put frames and crops of one scene into one split (ingest.split: subject), or lower "
            "validate.near_bits where they only resemble each other.",
        ),
        _figure(
            "images_with_two_targets",
            {"max_value": 0},
            "no image, by its pixels, has two targets",
            "Find the right one of these targets and remove the other rows from the raw input.",
        ),
    ]


def subject_checks() -> list[Check]:
    """Where subjects are known."""
    return [
        _figure(
            "subjects_in_two_splits",
            {"max_value": 0},
            "no subject (person, device) is in two splits",
            "Set ingest.split: subject, or mend the split column: a model could know the subject and not read.",
        ),
    ]


def balance_checks(task: Task, limits: Validate) -> list[Check]:
    """How targets are distributed over the splits."""
    return [
        _figure(
            "train_imbalance",
            {"min_value": limits.min_imbalance},
            f"train is long-tailed: fullest label over emptiest, in rows, is at least {limits.min_imbalance:g}",
            "Lower validate.min_imbalance if the data are as they should be; on balanced data plain SFT is enough.",
        ),
        _figure(
            "val_imbalance",
            {"max_value": limits.max_val_imbalance},
            f"val is balanced: fullest label over the mean one, in rows, is at most {limits.max_val_imbalance:g}",
            "Common labels would decide when the warm start ends. Set ingest.split: balanced or lower "
            "ingest.max_per_label, or raise validate.max_val_imbalance.",
        ),
        _figure(
            "test_imbalance",
            {"max_value": limits.max_test_imbalance},
            f"test is balanced: fullest label over the mean one, in rows, is at most {limits.max_test_imbalance:g}",
            "Set ingest.split: balanced or lower ingest.max_per_label, or raise validate.max_test_imbalance.",
        ),
        _figure(
            "test_unseen",
            {"max_value": limits.max_unseen},
            f"train has the labels of test: a share of at most {limits.max_unseen:g} of its rows has another",
            "A model reads there what it was never shown. Give train such rows, raise task.bin_width, or raise "
            "validate.max_unseen.",
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


def drift_checks(limits: Validate) -> list[Check]:
    """How far the data are from those that the champion was trained on. Their figures hold 0 for what may be chance."""
    model, labels, images = limits.drift.model, limits.drift.max_labels, limits.drift.max_images
    then = f"as in the data of the champion of {model}"
    look = (
        "If the world has changed, go on: the new model learns it, and the champion may read it badly. If not, find "
        "out how the new data were made; or raise validate.drift."
    )
    return [
        _drift("label_drift", labels, f"labels are distributed {then}", f"{look}max_labels."),
        _drift("image_size_drift", images, f"image sizes are distributed {then}", f"{look}max_images."),
        _drift("image_mode_drift", images, f"image modes are distributed {then}", f"{look}max_images."),
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


def _drift(column: str, limit: float, words: str, remedy: str) -> Check:
    told = f"{words} (stability index at most {limit:g}, or no more than chance gives)"
    return Check(column, "drift", "ExpectColumnMaxToBeBetween", {"column": column, "max_value": limit}, told, remedy)
