"""Defines the expectations: Great Expectations class and arguments, a description, and the remedy if it is not met."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from components.settings import Drift, Severities, Severity, Task, Validate
from components.shared.scoring.shots import SHOTS
from components.validate.image_probe import PLAIN_MODES


@dataclass(frozen=True)
class Check:
    """One expectation.

    Attributes:
        name: unique; the key in result.json.
        table: fields, rows, summary or drift.
        expectation: name of a class in great_expectations.expectations, because importing the class takes seconds.
        arguments: keyword arguments of that class.
        description: what is expected, in words.
        remedy: what to do if it is not met.
        shown_column: column whose value is shown for a row that does not meet it; None: the checked column.
        severity: error or warning.
    """

    name: str
    table: str
    expectation: str
    arguments: Mapping[str, Any]
    description: str
    remedy: str
    shown_column: str | None = None
    severity: Severity = "error"


def with_severities(checks: Sequence[Check], severities: Severities) -> list[Check]:
    """Returns the checks with their severities in the settings; checks without one keep their own."""
    configured = severities.model_dump()
    return [replace(check, severity=configured.get(check.name, check.severity)) for check in checks]


def field_checks() -> list[Check]:
    """Checks that the shards have the fields that every step reads."""
    return [
        Check(
            "schema",
            "fields",
            "ExpectColumnPairValuesToBeEqual",
            {"column_A": "expected", "column_B": "found"},
            "every shard has the fields and types of the row schema",
            "Another version of ingest wrote the shards. Run the ingest step again.",
        )
    ]


def row_checks(task: Task, limits: Validate) -> list[Check]:
    """Checks of each row."""
    fix_rows = "Correct or remove these rows in the raw input and run ingest again"
    return [
        _row_check("id_present", "id", "NotBeNull", {}, "every row has an id", f"{fix_rows}."),
        _row_check("id_unique", "id", "BeUnique", {}, "ids are unique over all splits", f"{fix_rows}."),
        _row_check("target_present", "target", "NotBeNull", {}, "every row has a target", f"{fix_rows}."),
        _row_check(
            "target_finite",
            "finite",
            "BeInSet",
            {"value_set": [True]},
            "every target is finite",
            f"{fix_rows}.",
            "target",
        ),
        _row_check(
            "target_in_range",
            "target",
            "BeBetween",
            {"min_value": task.low, "max_value": task.high},
            f"every target lies in the task's range, {task.low:g} to {task.high:g} {task.unit}".rstrip(),
            f"{fix_rows}, or widen task.low and task.high.",
        ),
        _row_check(
            "target_on_step",
            "off_step",
            "BeBetween",
            {"max_value": 0.001},
            f"every target is a whole number of steps of {task.resolution:g} {task.unit}".rstrip(),
            "Set task.resolution to the step of the labels, or round the labels: the model answers in these steps.",
            shown_column="target",
        ),
        _row_check(
            "image_decodes",
            "decodes",
            "BeInSet",
            {"value_set": [True]},
            "every image decodes completely",
            "Replace these files with intact ones, or remove their rows, and run ingest again.",
            shown_column="fault",
        ),
        _row_check(
            "image_mode",
            "mode",
            "BeInSet",
            {"value_set": list(PLAIN_MODES)},
            "every image is stored as 8-bit grey, palette or RGB",
            "Other modes are converted: 16 bits to 8, CMYK to RGB, transparency to white. Check the result.",
        ),
        _row_check(
            "image_size",
            "side",
            "BeBetween",
            {"min_value": limits.min_side},
            f"every image is at least {limits.min_side} pixels high and wide",
            f"{fix_rows}, or lower validate.min_side.",
        ),
    ]


def content_checks() -> list[Check]:
    """Checks that decoding loses nothing of what the images show; warnings, because the images may be meant so."""
    checks = [
        _summary_check(
            "image_range",
            {"min_value": 0.25},
            "16-bit images use at least a quarter of their range",
            "They look as if they used fewer bits. 16 bits are reduced to the upper 8, so the model sees them nearly "
            "black. Set task.grey_bits to the number of bits that they use (12 for values up to 4095).",
        ),
        _summary_check(
            "image_frames",
            {"max_value": 0},
            "no image has several frames or pages",
            "Only the first one is used. Save the frame that shows the number as an image of its own.",
        ),
    ]
    return [replace(check, severity="warning") for check in checks]


def leakage_checks(limits: Validate) -> list[Check]:
    """Checks that val and test images are new to the model, and that each image has one target."""
    return [
        _summary_check(
            "images_in_two_splits",
            {"max_value": 0},
            "no image, by its pixels, is in two splits",
            "Remove the repeated rows from the raw input and run ingest again: test images must be new to the model.",
        ),
        _summary_check(
            "near_duplicates",
            {"max_value": 0},
            f"no val or test image looks like one of an earlier split (hashes {limits.near_bits} of 256 bits apart)",
            "Look at the pairs. Put frames and crops of one scene into one split (ingest.split: subject), or lower "
            "validate.near_bits if the images only resemble each other.",
        ),
        _summary_check(
            "images_with_two_targets",
            {"max_value": 0},
            "no image, by its pixels, has two targets",
            "Decide which target is right and remove the other rows from the raw input.",
        ),
    ]


def subject_checks() -> list[Check]:
    """Checks for data with known subjects."""
    return [
        _summary_check(
            "subjects_in_two_splits",
            {"max_value": 0},
            "no subject (person, device) is in two splits",
            "Set ingest.split: subject, or correct the split column: a model could know the subject and not read.",
        ),
    ]


def balance_checks(task: Task, limits: Validate) -> list[Check]:
    """Checks of the distribution of targets over the splits."""
    return [
        _summary_check(
            "train_imbalance",
            {"min_value": limits.min_imbalance},
            f"train is long-tailed: fullest label over emptiest, in rows, is at least {limits.min_imbalance:g}",
            "Lower validate.min_imbalance if this is intended. On balanced data, plain SFT is enough.",
        ),
        _summary_check(
            "val_imbalance",
            {"max_value": limits.max_val_imbalance},
            f"val is balanced: fullest label over the mean one, in rows, is at most {limits.max_val_imbalance:g}",
            "Common labels would dominate the decision when the warm start ends. Set ingest.split: balanced, lower "
            "ingest.max_per_label, or raise validate.max_val_imbalance.",
        ),
        _summary_check(
            "test_imbalance",
            {"max_value": limits.max_test_imbalance},
            f"test is balanced: fullest label over the mean one, in rows, is at most {limits.max_test_imbalance:g}",
            "Set ingest.split: balanced, lower ingest.max_per_label, or raise validate.max_test_imbalance.",
        ),
        _summary_check(
            "test_unseen",
            {"max_value": limits.max_unseen},
            f"train has the labels of test: a share of at most {limits.max_unseen:g} of its rows has another",
            "The test asks for values that training does not contain. Add such rows to train, raise task.bin_width, or "
            "raise validate.max_unseen.",
        ),
        *(
            _summary_check(
                f"test_rows_{shot}",
                {"min_value": limits.min_rows_per_shot},
                f"test has at least {limits.min_rows_per_shot} {shot}-shot rows ({_limits(shot, task)} in train)",
                _SHOT_REMEDY[shot],
            )
            for shot in SHOTS
        ),
    ]


def drift_checks(limits: Drift, model: str) -> list[Check]:
    """Checks of the drift from the champion's training data. A figure is 0 if chance explains the difference."""
    labels, images = limits.max_labels, limits.max_images
    reference = f"as in the data of the champion of {model}"
    remedy = (
        "If the change is real, continue: the new model learns it, and the champion may perform worse on it. If not, "
        "find out how the new data were collected, or raise validate.drift."
    )
    return [
        _drift_check("label_drift", labels, f"labels are distributed {reference}", f"{remedy}max_labels."),
        _drift_check("image_size_drift", images, f"image sizes are distributed {reference}", f"{remedy}max_images."),
        _drift_check("image_mode_drift", images, f"image modes are distributed {reference}", f"{remedy}max_images."),
    ]


_SHOT_REMEDY = {
    "many": "Add test rows with common labels, or lower task.many or validate.min_rows_per_shot.",
    "medium": "Add test rows with such labels, change task.few and task.many, or lower validate.min_rows_per_shot.",
    "few": (
        "The rare values decide about promotion. Add test rows with rare labels (ingest.split: balanced does so for "
        "labels with three rows or more), raise task.few or task.bin_width, or lower validate.min_rows_per_shot."
    ),
}


def _limits(shot: str, task: Task) -> str:
    rows = {"many": f"more than {task.many}", "medium": f"{task.few} to {task.many}", "few": f"fewer than {task.few}"}
    return f"labels with {rows[shot]} rows"


def _row_check(
    name: str,
    column: str,
    kind: str,
    arguments: dict[str, Any],
    description: str,
    remedy: str,
    shown_column: str | None = None,
) -> Check:
    arguments = {"column": column, **arguments}
    return Check(name, "rows", f"ExpectColumnValuesTo{kind}", arguments, description, remedy, shown_column)


def _summary_check(column: str, limits: dict[str, float], description: str, remedy: str) -> Check:
    # The table has one row, so its maximum is the figure. This expectation reports the figure itself as observed.
    arguments = {"column": column, **limits}
    return Check(column, "summary", "ExpectColumnMaxToBeBetween", arguments, description, remedy)


def _drift_check(column: str, limit: float, description: str, remedy: str) -> Check:
    description = f"{description} (stability index at most {limit:g}, or no larger than chance)"
    arguments = {"column": column, "max_value": limit}
    return Check(column, "drift", "ExpectColumnMaxToBeBetween", arguments, description, remedy)
