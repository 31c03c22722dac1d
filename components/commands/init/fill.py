"""Fills a recipe with what was found: the task, its label bins, and limits that fit the data."""

import re
from argparse import Namespace
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML

from components.commands.init.ask import on_terminal
from components.commands.init.ask import text as ask
from components.commands.init.look import Found
from components.commands.init.paths import word_before
from components.commands.init.survey import ImageSurvey
from components.commands.init.task import (
    MAX_TEST_IMBALANCE,
    Limits,
    choose_bins,
    guess_range,
    guess_resolution,
    limits_of,
    on_step,
    rounded,
)
from components.commands.init.write import filled, model_settings, template_of
from components.ingest.sources.folder import split_labels
from components.settings import Ingest, Settings
from components.shared.rows.histogram import LabelBin, label_histogram
from components.strict import validated

_GENERIC = ("data", "dataset", "images", "photos", "pictures", "train", "raw", "tables")  # names that say nothing
# Columns whose names say that there is a number, but not which.
_UNNAMED = ("target", "label", "value", "y", "number", "answer")
_UNITS = {"age": "years", "boneage": "months"}
_UNIT_WORDS = ("months", "years", "days", "hours", "minutes", "seconds", "percent", "kg", "cm", "mm")
_QUESTIONS = {"age": "How old is the person?", "count": "How many are there?"}


@dataclass(frozen=True)
class Filled:
    """The params file to write.

    Attributes:
        text: its content.
        settings: the same as settings.
        histogram: label bins of the splits that ingest will make.
        notes: decisions that the user should know of.
    """

    text: str
    settings: Settings
    histogram: list[LabelBin]
    notes: list[str]


def fill(found: Found, survey: ImageSurvey, template: Settings, options: Namespace) -> Filled:
    """Chooses all settings that depend on the data.

    Raises:
        ConcordError: the labels cannot be split, or the flags contradict each other.
    """
    task, ingest = _task_and_ingest(found, options)
    values: dict[str, Any] = {
        "experiment": options.name or experiment_name(found.ingest),
        "task": task,
        "ingest": ingest.model_dump(mode="json"),
        "model": model_settings(options.model, survey.longer_side),
        "launcher": {"num_processes": 1, "sharding": "none", "loader_workers": template.launcher.loader_workers},
        "register": {"model": None} | _tolerances(task),
    }
    settings = _settings(values, options)
    members = split_labels(options.params, found.labels, settings)
    targets = {split: [label.target for label in labels] for split, labels in members.items()}
    histogram = label_histogram(targets, settings.task)
    limits = limits_of(histogram, template)
    rounding = not on_step([label.target for label in found.labels], settings.task)
    values["validate"] = _validate(limits, rounding)
    settings = _settings(values, options)
    notes = _notes(settings, template, limits, rounding, options)
    return Filled(_text(values, options), settings, histogram, notes)


def _task_and_ingest(found: Found, options: Namespace) -> tuple[dict[str, Any], Ingest]:
    """The section task, and the settings of ingest with the number of rows that a label gives to val and test."""
    targets = [label.target for label in found.labels]
    resolution = options.resolution or guess_resolution(targets)
    low, high = guess_range(targets, resolution)
    bins = choose_bins(found.labels, found.ingest.split, resolution, options.bin_width)
    name = word_before(found.ingest.pattern) or found.ingest.target_column
    question = options.question or ask("Question that the model is asked", question_for(name))
    unit = options.unit if options.unit is not None else ask("Unit of the answer, or nothing", unit_for(name))
    task = {
        "question": question,
        "unit": unit,
        "low": low if options.low is None else rounded(options.low),
        "high": high if options.high is None else rounded(options.high),
        "resolution": rounded(resolution) or resolution,
        "bin_width": rounded(bins.width),
        "many": bins.many,
        "few": bins.few,
        "grey_bits": None,
    }
    return task, found.ingest.model_copy(update={"max_per_label": bins.max_per_label})


def experiment_name(ingest: Ingest) -> str:
    """A name for the experiment: that of the data's folder, or of the target if the folder's says nothing."""
    for name in [*reversed(ingest.path.split("/")), ingest.target_column]:
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        if slug and slug not in _GENERIC and slug != "s3":
            return slug
    return "experiment"


def question_for(name: str) -> str:
    """A question that asks for a column.

    >>> question_for("bone_age"), question_for("Strokes")
    ('What is the bone age?', 'How many strokes are there?')
    """
    words = re.sub(r"[^A-Za-z0-9]+", " ", name).strip()
    words = words.lower() if words.istitle() else words
    if words.lower() in ("", *_UNNAMED):
        return "What number does the image show?"
    about, _, unit = words.rpartition(" ")
    if about and unit in _UNIT_WORDS:
        return f"What is the {about} in {unit}?"
    plural = words.endswith("s") and not words.endswith(("ss", "us", "is"))
    return _QUESTIONS.get(words.lower(), f"How many {words} are there?" if plural else f"What is the {words}?")


def unit_for(name: str) -> str:
    """The unit that a column's name tells, as `age` or `age_months` do; empty if it tells none."""
    words = re.split(r"[^a-z]+", name.lower())
    return _UNITS.get(name.lower()) or next((word for word in reversed(words) if word in _UNIT_WORDS), "")


def _tolerances(task: dict[str, Any]) -> dict[str, float]:
    """How much worse than the champion's an MAE may be: 0.1 % and 0.5 % of the range."""
    span = task["high"] - task["low"]
    return {"tolerance_all": float(f"{span / 1000:.1g}"), "tolerance_many": float(f"{span / 200:.1g}")}


def _validate(limits: Limits, rounding: bool) -> dict[str, Any]:
    severity = {f"test_rows_{shot}": "warning" for shot in limits.absent}
    if rounding:
        severity["target_on_step"] = "warning"
    return {
        "min_imbalance": rounded(limits.min_imbalance),
        "max_test_imbalance": rounded(limits.max_test_imbalance),
        "max_val_imbalance": rounded(limits.max_val_imbalance),
        "min_rows_per_shot": limits.min_rows_per_shot,
        "severity": severity,
    }


def _text(values: dict[str, Any], options: Namespace) -> str:
    template = template_of(options.model)
    head = (
        f"Written by `python -m components init {options.data}` from pipelines/recipes/{template.name}.\n"
        "Every setting of the experiment, with a section for each step; components/README.md explains them."
    )
    return filled(template, head, values)


def _settings(values: dict[str, Any], options: Namespace) -> Settings:
    """The settings of the filled recipe.

    Raises:
        ConcordError: a value is wrong; it came from a flag.
    """
    raw = YAML(typ="safe", pure=True).load(_text(values, options))
    return validated(Settings, raw, options.params)


def _notes(settings: Settings, template: Settings, limits: Limits, rounding: bool, options: Namespace) -> list[str]:
    """What the user should know about the choices."""
    notes = []
    task = settings.task
    if not options.question and not on_terminal():
        notes.append(f"The question is {task.question!r}; --question sets another one.")
    if rounding:
        step = f"{task.resolution:g}"
        notes.append(f"The labels are not multiples of {step} and are rounded to it; --resolution sets another step.")
    if limits.absent:
        groups = " or ".join(f"{shot}-shot" for shot in limits.absent)
        notes.append(f"No test row is {groups}: the labels are too evenly spread. Plain SFT may be enough.")
    elif limits.train_imbalance < template.validation.min_imbalance:
        notes.append(
            f"The fullest label has only {limits.train_imbalance:.2g} times the training rows of the emptiest, so "
            f"validate.min_imbalance is {limits.min_imbalance:g}. Plain SFT may be enough."
        )
    if limits.test_imbalance > MAX_TEST_IMBALANCE:
        remedy = "" if settings.ingest.split == "balanced" else " --split balanced would make it even."
        notes.append(
            f"Test is uneven: its fullest label has {limits.test_imbalance:.1f} times the mean, so "
            f"validate.max_test_imbalance is {limits.max_test_imbalance:g}.{remedy}"
        )
    if limits.min_rows_per_shot < template.validation.min_rows_per_shot and not limits.absent:
        notes.append(
            f"The smallest shot group has {limits.min_rows_per_shot} test images, so its errors will be uncertain. "
            "More images of rare labels help most."
        )
    return notes
