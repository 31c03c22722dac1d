"""Compares the arms of a study over seeds and images."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.commands.ablation.answers import Answers
from components.commands.ablation.judging import Reading, judge
from components.commands.ablation.studies import WARM, Study
from components.errors import ConcordError
from components.settings import Settings
from components.shared.model.validation_file import fitted_rule, read_validation
from components.shared.rows.rows import read_subjects, read_table
from components.shared.scoring.crossed import crossed_difference
from components.shared.scoring.errors import Array, Subjects, subject_numbers
from components.shared.scoring.shots import GROUPS
from components.shared.scoring.skill import CONSTANTS, best_constant

Judged = dict[str, Reading]  # ARM.READING


def judge_seed(settings: Settings, study: Study, models: Mapping[str, Path], split: str) -> Judged:
    """Judges the models of one seed.

    Args:
        models: `warm` and every arm of the study -> folder of the model, which holds its answers.

    Raises:
        ConcordError: two models answered different images.
    """
    found: Judged = {}
    many, ids = None, None
    given, tolerance = (
        settings.answer.model_copy(update={"statistic": "median", "balance": "auto"}),
        settings.registry.tolerance_many,
    )
    for arm in (WARM, *study.arms):
        path = models[arm] / f"answers-{split}.npz"
        answers, rule = Answers.read(path), fitted_rule(models[arm], given, tolerance)
        ids = answers.ids if ids is None else ids
        if not np.array_equal(ids, answers.ids):
            raise ConcordError(f"{path}: its answers are for other images than the warm start's. Delete it and retry.")
        readings = judge(answers, rule, settings.task, tolerance, many)
        if arm == WARM:
            common = rule.validation.shots_of(answers.targets) == "many"
            many = float(readings["text"].errors[common].mean()) if common.any() else None
        found |= {f"{arm}.{name}": readings[name] for name in study.readings if name in readings}
    return found


@dataclass(frozen=True)
class Images:
    """What is judged.

    Attributes:
        targets, shots: `(U,)` of the images of a split.
        subjects: `(U,)` numbers of the persons or devices in them; None if they are unknown.
        constants: title -> a number that is the answer to every image, which a model must beat.
    """

    targets: Array
    shots: NDArray[np.str_]
    subjects: Subjects | None
    constants: Mapping[str, float]

    @classmethod
    def read(cls, ingest: Path, warm_start: Path, split: str) -> "Images":
        """Those that the warm start answered."""
        _, known = read_validation(warm_start)
        answers = Answers.read(warm_start / f"answers-{split}.npz")
        ids = read_table(ingest, split, ["id"])["id"].to_pylist()
        names = dict(zip(ids, read_subjects(ingest, split), strict=True))
        train = np.repeat(known.values, known.counts.astype(int))
        numbers = {"validation": best_constant(known.targets[known.tune]), "training": best_constant(train)}
        constants = {f"{CONSTANTS[name]} {number:g}": number for name, number in numbers.items()}
        subjects = subject_numbers([names[id] for id in answers.ids.tolist()])
        return cls(answers.targets, known.shots_of(answers.targets), subjects, constants)


def compare(study: Study, seeds: Mapping[int, Judged], images: Images, tolerance: float) -> dict[str, Any]:
    """The figures of every arm and reading by seed, and the differences that the study asks for.

    Args:
        seeds: seed -> its judged models.
        tolerance: largest many-shot loss that is allowed on tune, in the task's unit.
    """
    masks = {group: (images.shots == group) | (group == "all") for group in GROUPS}
    names = [f"{arm}.{reading}" for reading in study.readings for arm in (WARM, *study.arms)]
    by_name = {name: [judged.get(name) for judged in seeds.values()] for name in names}
    return {
        "seeds": list(seeds),
        "sizes": {group: int(mask.sum()) for group, mask in masks.items()},
        "constants": {title: _constant(images, number, masks) for title, number in images.constants.items()},
        "readings": {name: _by_seed(readings, masks) for name, readings in by_name.items()},
        "differences": {
            f"{ours} - {theirs}": {
                group: _difference(by_name[ours], by_name[theirs], mask, images.subjects)
                for group, mask in masks.items()
            }
            for comparison in study.comparisons
            for ours, theirs in comparison.pairs
        },
        "tune": {
            name: {"mae": [p.mae for p in points], "bound": [p.bound for p in points]}
            for name, readings in by_name.items()
            if (points := [r.tune for r in readings if r and r.tune])
        },
        "tolerance": tolerance,
    }


def _constant(images: Images, number: float, masks: Mapping[str, NDArray[np.bool_]]) -> dict[str, float | None]:
    """MAE of each group."""
    errors = np.abs(images.targets - number)
    return {group: float(errors[mask].mean()) if mask.any() else None for group, mask in masks.items()}


def _by_seed(readings: list[Reading | None], masks: Mapping[str, NDArray[np.bool_]]) -> dict[str, Any]:
    """MAE of each group and the other figures, one value per seed; None where a seed has none."""
    names = next((list(reading.figures) for reading in readings if reading), [])
    return {
        "mae": {
            group: [float(r.errors[mask].mean()) if r and mask.any() else None for r in readings]
            for group, mask in masks.items()
        },
        "figures": {name: [r.figures[name] if r else None for r in readings] for name in names},
    }


def _difference(
    ours: list[Reading | None], theirs: list[Reading | None], mask: NDArray[np.bool_], subjects: Subjects | None
) -> dict[str, Any]:
    """Over the seeds in which both are known."""
    both = [(a.errors, b.errors) for a, b in zip(ours, theirs, strict=True) if a and b]
    if not both:
        return {"n": int(mask.sum()), "seeds": 0, "difference": None, "ci": None, "df": None, "per_seed": None}
    return crossed_difference([a for a, _ in both], [b for _, b in both], mask, subjects)
