"""The trainers that the benchmark compares: ours with each estimator, and TRL's stock trainer."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from datasets import Dataset
from trl import GRPOTrainer

from components.grpo.exact_trainer import ExactTrainer, exact_arguments
from components.grpo.rewards import format_reward, regression_reward
from components.grpo.trainer import BatchRewardTrainer, training_arguments
from components.ingest.sources.gauges import draw_scenes, render
from components.settings import RewardName, Settings
from components.shared.model.lora import trainable
from components.shared.model.prompts import max_answer_tokens, prompt
from components.shared.rows.rows import Row, ShardWriter
from components.shared.scoring.answers import parse_answers
from components.shared.training.presentations import presentations, training_rows
from components.shared.training.validation import TaskNumbers


@dataclass(frozen=True)
class Side:
    """A trainer that takes part.

    Attributes:
        name: in results.
        title: in tables.
        kl: whether the loss has the settings' KL; otherwise beta is 0.
        stock: TRL's trainer instead of ours.
    """

    name: str
    title: str
    estimator: Literal["sampled", "means", "policy"] = "sampled"
    reward: RewardName = "ccc"
    kl: bool = True
    stock: bool = False

    def settings(self, base: Settings) -> Settings:
        """The settings with this side's estimator, reward and KL."""
        changes: dict[str, Any] = {"estimator": self.estimator, "reward": self.reward}
        if self.estimator != "means":
            changes["balance"] = 0.0
        if not self.kl:
            changes["beta"] = 0.0
        return base.model_copy(update={"grpo": base.grpo.model_copy(update=changes)})


SAMPLED, TRL = Side("sampled", "sampled"), Side("trl", "TRL", stock=True)
EXACT = (
    Side("means-ccc", "means, ccc", "means"),
    Side("means-crps", "means, crps", "means", "crps"),
    Side("policy", "policy, ccc", "policy"),
)


@dataclass(frozen=True)
class Material:
    """What the trainers of a case share.

    Attributes:
        ingest: row shards with the split train.
        load: returns a new copy of the model, always with the same weights, and its processor.
    """

    settings: Settings
    ingest: Path
    load: Callable[[], tuple[Any, Any]]

    def trainer(self, side: Side, steps: int, folder: Path, checkpoint_every: int | None = None) -> Any:
        """The trainer of one side, for so many steps."""
        settings = side.settings(self.settings)
        rhythm = {"steps": steps, "checkpoint_every": checkpoint_every or steps}
        settings = settings.model_copy(update={"grpo": settings.grpo.model_copy(update=rhythm)})
        model, processor = self.load()
        rows = training_rows(self.ingest, folder / "cache")
        common = {
            "model": trainable(model, settings.model),
            "train_dataset": _presented(settings, rows),
            "processing_class": processor,
        }
        if side.estimator != "sampled":
            numbers = TaskNumbers.of(processor, settings.task, np.asarray(rows["target"][:]))
            arguments = exact_arguments(settings.grpo, settings, folder, 1)
            return ExactTrainer(args=arguments, settings=settings, numbers=numbers, **common)
        return _sampled_trainer(side, settings, folder, common)


def write_images(folder: Path, settings: Settings, size: int, per_reading: int) -> Path:
    """Draws gauges as a split train, so many of each reading from 0 to 100; returns the folder."""
    folder.mkdir(parents=True)
    with ShardWriter(folder, "train", 256) as writer:
        for scene in draw_scenes(0, np.full(101, per_reading), 0, 0):
            image = render(scene, size)
            writer.add(Row(scene.id, image, float(scene.reading), settings.task.question, scene.id))
    return folder


def _presented(settings: Settings, rows: Dataset) -> Dataset:
    grpo = settings.grpo
    return presentations(
        rows,
        grpo.steps * grpo.prompts,
        0,
        grpo.augment,
        lambda row, image: {
            "prompt": prompt(row["question"]),
            "question": row["question"],
            "image": image,
            "target": row["target"],
            "shot": "many",
        },
    )


def _sampled_trainer(side: Side, settings: Settings, folder: Path, common: dict[str, Any]) -> Any:
    grpo = settings.grpo
    arguments = training_arguments(grpo, settings, folder, 1)
    if not side.stock:
        return BatchRewardTrainer(args=arguments, settings=settings, **common)
    arguments.max_completion_length = max_answer_tokens(common["processing_class"], settings.task)
    arguments.reward_weights = [grpo.reward_weight, grpo.format_weight]
    arguments.multi_objective_aggregation = "normalize_then_sum"
    return GRPOTrainer(reward_funcs=_rewards(settings), args=arguments, **common)


def _rewards(settings: Settings) -> list[Callable[..., list[float]]]:
    """Our two rewards as TRL reward functions."""
    task, generations = settings.task, settings.grpo.generations

    def numbers(completions: Any) -> np.ndarray:
        texts = [completion[0]["content"] for completion in completions]
        return parse_answers(texts, task.low, task.high).reshape(-1, generations)

    def regression(completions: Any, target: list[float], **_: Any) -> list[float]:
        rewards = regression_reward(
            settings.grpo.reward, numbers(completions), target[::generations], task.low, task.high
        )
        return list(rewards.reshape(-1))

    def formatted(completions: Any, **_: Any) -> list[float]:
        return list(format_reward(numbers(completions)).reshape(-1))

    return [regression, formatted]
