"""The results of the evaluation, as the report, the plots and the output files use them."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from components.settings import Answer, Evaluate, Model, Settings
from components.shared.reporting.metrics import paired_difference
from components.shared.reporting.predictions import TEXT
from components.shared.scoring.answer_rule import AnswerRule
from components.shared.scoring.choice import Choice, Point
from components.shared.scoring.errors import Array, Predictions
from components.shared.scoring.shots import GROUPS, ShotTable
from components.steps import metrics_file

MODELS = ("base", "sft", "grpo")
CONSTANT = "constant"  # what stands in place of a model where every image gets the same answer
BALANCED = "balanced"


@dataclass(frozen=True)
class Answers:
    """One way to read numbers from one model, judged on the test images.

    Attributes:
        model: `base`, `sft`, `grpo` or `constant`.
        way: of `components.shared.reporting.predictions.WAYS`; of a constant, the split that it comes from.
        title: shown to users.
        predictions: the answers.
        metrics: result of `components.shared.reporting.metrics.evaluate`.
    """

    model: str
    way: str
    title: str
    predictions: Predictions
    metrics: dict[str, Any]

    @property
    def name(self) -> str:
        """The key in differences.json: `grpo.text`."""
        return f"{self.model}.{self.way}"


@dataclass(frozen=True)
class Distributions:
    """One trained model's distributions over all numbers.

    Attributes:
        log_p: `(U, N)` of the test images.
        rule: how answers and intervals are read from them.
        stretch: the factor by which the mean is stretched.
        test_curve: every balance, judged on the test images; nothing is chosen by it.
        metrics: result of `components.shared.reporting.distribution_metrics.evaluate_distribution`.
    """

    log_p: Array
    rule: AnswerRule
    stretch: Choice
    test_curve: Sequence[Point]
    metrics: dict[str, Any]


@dataclass(frozen=True)
class ModelResults:
    """One model's answers and metrics.

    Attributes:
        name: `base`, `sft` or `grpo`.
        title: shown to users.
        table: the predictions, see `components.shared.reporting.predictions.SCHEMA`.
        answers: by way; `base` has no prior and so only text, median and mean.
        distributions: None for `base`.
    """

    name: str
    title: str
    table: pa.Table
    answers: Mapping[str, Answers]
    distributions: Distributions | None

    def metrics(self) -> dict[str, Any]:
        """The figures of the model for metrics.json."""
        figures: dict[str, Any] = {way: answers.metrics for way, answers in self.answers.items()}
        if known := self.distributions:
            figures["distribution"] = known.metrics
            figures["balance"] = _choice(known.rule.balance)
            figures["stretch"] = _choice(known.stretch)
        return figures


@dataclass(frozen=True)
class Served:
    """What the registry will serve.

    Attributes:
        model, way: which model, and how it is read.
        reason: why this one.
    """

    model: str
    way: str
    reason: str

    @property
    def name(self) -> str:
        """The key in differences.json."""
        return f"{self.model}.{self.way}"


@dataclass(frozen=True)
class EvaluationResults:
    """The results of all models.

    Attributes:
        train: training targets `(N,)`.
        models: in the order of `MODELS`, for the same test images.
        constants: the best constant on validation and the training median, for the same images.
        served: the answers that are registered.
        differences: `OURS - THEIRS` -> shot group -> paired difference of absolute errors.
        unreadable: id -> reason of the test images that are left out of all of this.
    """

    settings: Settings
    train: Array
    shots: ShotTable
    models: Sequence[ModelResults]
    constants: Sequence[Answers]
    served: Served
    differences: dict[str, dict[str, dict[str, Any]]]
    unreadable: Mapping[str, str] = field(default_factory=dict)

    @property
    def unreadable_share(self) -> dict[str, float]:
        """Number and share of the test images that no figure includes, for metrics.json."""
        count = len(self.unreadable)
        return {"images": count, "share": count / (count + len(self.targets))}

    def metrics(self) -> dict[str, dict[str, Any]]:
        """The content of metrics.json: model -> way -> figures."""
        constants = {answers.way: answers.metrics for answers in self.constants}
        return {model.name: model.metrics() for model in self.models} | {CONSTANT: constants}

    def titles(self) -> dict[str, str]:
        """The content of titles.json: name of the answers -> title."""
        answers = [each for model in self.models for each in model.answers.values()]
        return {each.name: each.title for each in (*answers, *self.constants)}

    def model(self, name: str) -> ModelResults:
        """The results of `base`, `sft` or `grpo`."""
        return next(model for model in self.models if model.name == name)

    def answers(self, name: str) -> Answers:
        """The answers with a name such as `grpo.text`."""
        model, _, way = name.partition(".")
        return self.model(model).answers[way]

    @property
    def served_answers(self) -> Answers:
        """The answers that are registered."""
        return self.answers(self.served.name)

    @property
    def trained(self) -> list[tuple[ModelResults, Distributions]]:
        """The trained models with their distributions."""
        return [(model, model.distributions) for model in self.models if model.distributions]

    @property
    def targets(self) -> Array:
        """Targets of the test images, `(U,)`."""
        return self.served_answers.predictions.targets

    @property
    def units(self) -> str:
        """What intervals resample: `test images`, or `7 subjects of the test images` where these are known."""
        subjects = self.served_answers.predictions.subjects
        return "test images" if subjects is None else f"{int(subjects.max()) + 1} subjects of the test images"

    def members(self, group: str) -> NDArray[np.bool_]:
        """Mask of the test images in a shot group."""
        return self.served_answers.predictions.members(group)


def model_titles(settings: Model, grpo: Path) -> dict[str, str]:
    """Names of the models shown to users.

    Args:
        grpo: its model folder; the metrics file in it names the method that trained it.
    """
    with open(metrics_file(grpo), encoding="utf-8") as file:
        method = json.load(file).get("method", "GRPO")
    return {"base": "untrained" if settings.name == "tiny" else "base model", "sft": "SFT", "grpo": method}


def way_title(way: str, rule: AnswerRule | None, stretch: Choice | None) -> str:
    """How a way of reading numbers is shown to users."""
    if way == BALANCED and rule:
        return f"{rule.statistic}, balance {rule.balance.value:g}"
    if way == "stretched" and stretch:
        return f"mean stretched by {stretch.value:g}"
    return way


def choose_served(models: Sequence[ModelResults], answer: Answer, tolerance: float) -> Served:
    """What to register: the trained model by its text, or the model whose distribution is better on `tune`.

    The warm start is a candidate: where reinforcement learning is worth nothing, it is served. A model that harms
    common numbers is only served if the other does so too.

    Args:
        tolerance: largest many-shot loss against the warm start's text, in the task's unit.
    """
    if answer.source == TEXT:
        return Served("grpo", TEXT, "answer.from is text")
    points = {model.name: model.distributions.rule.balance.chosen for model in models if model.distributions}
    titles = {model.name: model.title for model in models}
    kept = {name: point for name, point in points.items() if point.bound is None or point.bound <= tolerance}
    best = min(kept or points, key=lambda name: (points[name].mae, name == "grpo"))
    figures = ", ".join(f"{titles[name]} {point.mae:.3g}" for name, point in points.items())
    if len(kept) == 1:
        reason = f"alone keeps the many-shot loss on tune within {tolerance:g}; MAE on tune"
    else:
        reason = "lower MAE on tune"
    return Served(best, BALANCED, f"{reason}, every label weighing the same: {figures}")


def pairs(served: Served) -> list[tuple[str, str]]:
    """The comparisons that the report shows: what is served, what was published, and what training is worth."""
    wanted = [
        (served.name, "sft.text"),
        ("grpo.text", "sft.text"),
        (f"grpo.{BALANCED}", f"sft.{BALANCED}"),
        (f"sft.{BALANCED}", "grpo.text"),
        (f"grpo.{BALANCED}", "grpo.text"),
    ]
    return list(dict.fromkeys(wanted))


def differences(
    models: Sequence[ModelResults], served: Served, settings: Evaluate
) -> dict[str, dict[str, dict[str, Any]]]:
    """Paired differences of absolute errors by shot group; below 0, the first is better."""
    errors = {answers.name: answers.predictions for model in models for answers in model.answers.values()}
    return {
        f"{ours} - {theirs}": {
            group: paired_difference(
                [errors[ours].errors],
                [errors[theirs].errors],
                errors[ours].members(group),
                settings.bootstrap,
                settings.seed,
                errors[ours].subjects,
            )
            for group in GROUPS
        }
        for ours, theirs in pairs(served)
    }


def _choice(choice: Choice) -> dict[str, Any]:
    curve = [asdict(point) for point in choice.curve]
    for point in curve:  # a single many-shot image has no finite bound, and JSON no infinity
        point["bound"] = point["bound"] if point["bound"] is not None and math.isfinite(point["bound"]) else None
    return {"value": choice.value, "reason": choice.reason, "curve": curve}
