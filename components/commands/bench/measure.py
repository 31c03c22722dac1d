"""Times whole training steps by phase, and measures the memory of the policy pass."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from trl import GRPOTrainer

from components.errors import ConcordError
from components.grpo.rewards import format_reward, regression_reward
from components.grpo.trainer import BatchRewardTrainer, training_arguments
from components.ingest.sources.gauges import draw_scenes, render
from components.settings import Settings, TinyModel
from components.shared.model.device import device, on_accelerator, peak_bytes
from components.shared.model.loading import load, save
from components.shared.model.prompts import prompt
from components.shared.model.tiny import build_model, build_processor
from components.shared.rows.rows import Row, ShardWriter
from components.shared.scoring.answers import parse_answers
from components.shared.training.presentations import presentations, training_rows

PHASES = ("step", "rollout", "reward", "policy pass", "optimizer")


@dataclass(frozen=True)
class Case:
    """One case of the benchmark.

    Attributes:
        title: heading of its table.
        image_size: side of the images in pixels; each patch becomes one token. None: as in the settings.
        prompts, generations, max_new_tokens: of one step; None: as in the settings.
    """

    title: str
    image_size: int | None = None
    prompts: int | None = None
    generations: int | None = None
    max_new_tokens: int | None = None

    def settings(self, base: Settings) -> Settings:
        """The experiment's settings with the changes of this case."""
        step = {"prompts": self.prompts, "generations": self.generations, "max_new_tokens": self.max_new_tokens}
        grpo = base.grpo.model_copy(update={name: value for name, value in step.items() if value})
        tiny = _tiny(base).model_copy(update={"image_size": self.image_size} if self.image_size else {})
        return base.model_copy(update={"grpo": grpo, "model": base.model.model_copy(update={"tiny": tiny})})


CASES = {
    "default": Case("the default experiment"),
    "image-heavy": Case("256 image tokens", image_size=256, prompts=4, generations=8, max_new_tokens=8),
    "g16": Case("256 image tokens, G 16", image_size=256, prompts=4, generations=16, max_new_tokens=8),
}


def _tiny(settings: Settings) -> TinyModel:
    if settings.model.tiny is None:
        raise ConcordError(
            "model.tiny: missing in the settings. bench builds its model from it; use settings that have it."
        )
    return settings.model.tiny


def measure(case: Case, base: Settings, rounds: int) -> dict[str, Any]:
    """Times alternating steps of both trainers; the first step of each is a warm-up.

    Returns:
        `{"ours": ..., "trl": ...}`, each with `phases` (median, least and most seconds) and `policy_pass_bytes`;
        `ratios`, TRL's time over ours, one per round; the token counts, and the speed-up limits that follow from them.
    """
    settings = case.settings(base)
    with tempfile.TemporaryDirectory() as scratch:
        trainers = _trainers(settings, Path(scratch), rounds + 2)
        steps = {which: _TimedSteps(trainer) for which, trainer in trainers.items()}
        times: dict[str, list[dict[str, float]]] = {which: [] for which in steps}
        for number in range(rounds + 1):
            for which, one in steps.items():
                seconds = one.step()
                if number:
                    times[which].append(seconds)
        memory = {which: one.policy_pass_bytes() for which, one in steps.items()}
        prompt_tokens, completion_tokens = steps["ours"].tokens
    ratios = [theirs["step"] / ours["step"] for ours, theirs in zip(times["ours"], times["trl"], strict=True)]
    g = settings.grpo.generations
    return {
        "title": case.title,
        "prompts": settings.grpo.prompts,
        "generations": g,
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "limit_language_model": g * (prompt_tokens + completion_tokens) / (prompt_tokens + g * completion_tokens),
        "limit_vision_tower": g,
        "ratios": ratios,
        **{
            which: {"phases": _spread(times[which]), "policy_pass_bytes": memory[which], "rounds": times[which]}
            for which in steps
        },
    }


def _spread(times: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    columns = {phase: np.array([one[phase] for one in times]) for phase in PHASES}
    return {
        phase: {"median": float(np.median(values)), "least": float(values.min()), "most": float(values.max())}
        for phase, values in columns.items()
    }


def _trainers(settings: Settings, folder: Path, steps: int) -> dict[str, Any]:
    """Our trainer and TRL's, with the same data and the same initial weights."""
    tiny = _tiny(settings)
    processor = build_processor(tiny, [settings.task.question])
    save(build_model(tiny, processor, seed=0), processor, folder / "model")
    (folder / "ingest").mkdir()
    with ShardWriter(folder / "ingest", "train", 256) as writer:
        for scene in draw_scenes(0, np.full(101, 2), 0, 0):
            image = render(scene, tiny.image_size)
            writer.add(Row(scene.id, image, float(scene.reading), settings.task.question, scene.id))
    grpo = settings.grpo.model_copy(update={"steps": steps})
    dataset = presentations(
        training_rows(folder / "ingest", folder / "cache"),
        steps * grpo.prompts,
        0,
        grpo.augment,
        lambda row, image: {
            "prompt": prompt(row["question"]),
            "image": image,
            "target": row["target"],
            "shot": "many",
        },
    )
    trainers: dict[str, Any] = {}
    for which in ("ours", "trl"):
        model, processor = load(folder / "model", settings.model)
        arguments = training_arguments(grpo, settings, folder / which, 1)
        common = {"model": model, "args": arguments, "train_dataset": dataset, "processing_class": processor}
        if which == "ours":
            trainers[which] = BatchRewardTrainer(settings=settings, **common)
        else:
            arguments.reward_weights = [grpo.reward_weight, grpo.format_weight]
            arguments.multi_objective_aggregation = "normalize_then_sum"
            trainers[which] = GRPOTrainer(reward_funcs=_rewards(settings), **common)
    return trainers


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


class _TimedSteps:
    """Runs a trainer step by step and times each phase."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
        self._optimizer = torch.optim.AdamW(trainer.model.parameters(), lr=1e-5)
        self._batches = iter(trainer.get_train_dataloader())
        self._seconds: dict[str, float] = {}
        self._inputs: Any = None
        for name, phase in (("_generate", "rollout"), ("_calculate_rewards", "reward")):
            setattr(trainer, name, self._timed(getattr(trainer, name), phase))

    def _timed(self, function: Callable[..., Any], phase: str) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self._time(phase):
                return function(*args, **kwargs)

        return timed

    @contextmanager
    def _time(self, phase: str) -> Iterator[None]:
        _synchronize()
        start = time.perf_counter()
        yield
        _synchronize()
        self._seconds[phase] = self._seconds.get(phase, 0.0) + time.perf_counter() - start

    def step(self) -> dict[str, float]:
        """Takes one optimizer step and returns the seconds by phase."""
        self._seconds = {}
        with self._time("step"):
            for _ in range(self._trainer.args.gradient_accumulation_steps):
                batch = next(self._batches)
                self._inputs = self._trainer._prepare_inputs(batch)
                with self._time("policy pass"):
                    self._trainer.compute_loss(self._trainer.model, self._inputs).backward()
                self._trainer._step += 1
            with self._time("optimizer"):
                torch.nn.utils.clip_grad_norm_(self._trainer.model.parameters(), 1.0)
                self._optimizer.step()
                self._optimizer.zero_grad()
        return self._seconds

    @property
    def tokens(self) -> tuple[int, int]:
        """Prompt and completion tokens of the last step, with padding."""
        return self._inputs["prompt_ids"].shape[1], self._inputs["completion_ids"].shape[1]

    def policy_pass_bytes(self) -> int:
        """Peak bytes that a policy pass on the last inputs allocates on top of what was allocated before."""
        trainer = self._trainer
        return peak_bytes(lambda: trainer.compute_loss(trainer.model, self._inputs).backward(), device())


def _synchronize() -> None:
    """Waits until the accelerator has finished its queued work."""
    if on_accelerator():
        torch.accelerator.synchronize()
