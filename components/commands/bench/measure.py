"""Whole training steps, timed by phase, and the memory of the policy pass."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from trl import GRPOTrainer

from components.errors import ConcordError
from components.grpo.rewards import format_reward, regression_reward
from components.grpo.trainer import BatchRewardTrainer, training_arguments
from components.ingest.sources.gauges import draw_scenes, render
from components.settings import Settings, TinyModel
from components.shared.model.device import on_accelerator
from components.shared.model.loading import load, save
from components.shared.model.prompts import prompt
from components.shared.model.tiny import build_model, build_processor
from components.shared.rows.rows import Row, ShardWriter
from components.shared.scoring.answers import parse_answers
from components.shared.training.presentations import presentations, training_rows

PHASES = ("step", "rollout", "reward", "policy pass", "optimizer")


@dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        title: in words.
        prompts, generations, max_new_tokens: of one step; None leaves what the settings say.
        image_size: side of the pictures in pixels; a patch of the settings' size is a token.
    """

    title: str
    image_size: int | None = None
    prompts: int | None = None
    generations: int | None = None
    max_new_tokens: int | None = None

    def settings(self, given: Settings) -> Settings:
        """The experiment's settings, changed to the case."""
        step = {"prompts": self.prompts, "generations": self.generations, "max_new_tokens": self.max_new_tokens}
        grpo = given.grpo.model_copy(update={name: value for name, value in step.items() if value})
        tiny = _tiny(given).model_copy(update={"image_size": self.image_size} if self.image_size else {})
        return given.model_copy(update={"grpo": grpo, "model": given.model.model_copy(update={"tiny": tiny})})


CASES = {
    "default": Case("the default experiment"),
    "image-heavy": Case("256 image tokens", image_size=256, prompts=4, generations=8, max_new_tokens=8),
    "g16": Case("256 image tokens, G 16", image_size=256, prompts=4, generations=16, max_new_tokens=8),
}


def _tiny(settings: Settings) -> TinyModel:
    if settings.model.tiny is None:
        raise ConcordError("model.tiny: missing in the settings, and bench builds its model from it.")
    return settings.model.tiny


def measure(case: Case, given: Settings, rounds: int) -> dict[str, Any]:
    """Steps of both trainers in alternation, the first of each not counted.

    Returns:
        `{"ours": ..., "trl": ...}`, each with `phases` (median, least and most seconds) and `policy_pass_bytes`;
        `ratios`, TRL's time over ours, round by round; token counts and the limits that they set.
    """
    settings = case.settings(given)
    with tempfile.TemporaryDirectory() as scratch:
        made = _trainers(settings, Path(scratch), rounds + 2)
        steps = {which: _Steps(trainer) for which, trainer in made.items()}
        times: dict[str, list[dict[str, float]]] = {which: [] for which in steps}
        for turn in range(rounds + 1):
            for which, one in steps.items():
                seconds = one.step()
                if turn:
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
    """Ours and TRL's on the same data, from the same weights."""
    tiny = _tiny(settings)
    processor = build_processor(tiny, [settings.task.question])
    save(build_model(tiny, processor, seed=0), processor, folder / "model")
    (folder / "ingest").mkdir()
    with ShardWriter(folder / "ingest", "train", 256) as writer:
        for scene in draw_scenes(0, np.full(101, 2), 0, 0):
            image = render(scene, tiny.image_size)
            writer.add(Row(scene.id, image, float(scene.reading), settings.task.question, scene.id))
    grpo = settings.grpo.model_copy(update={"steps": steps})
    shown = presentations(
        training_rows(folder / "ingest", folder / "cache"),
        steps * grpo.prompts,
        0,
        grpo.augment,
        lambda row, picture: {
            "prompt": prompt(row["question"]),
            "image": picture,
            "target": row["target"],
            "shot": "many",
        },
    )
    made: dict[str, Any] = {}
    for which in ("ours", "trl"):
        model, processor = load(folder / "model", settings.model)
        arguments = training_arguments(grpo, settings, folder / which, 1)
        common = {"model": model, "args": arguments, "train_dataset": shown, "processing_class": processor}
        if which == "ours":
            made[which] = BatchRewardTrainer(settings=settings, **common)
        else:
            arguments.reward_weights = [grpo.reward_weight, grpo.format_weight]
            arguments.multi_objective_aggregation = "normalize_then_sum"
            made[which] = GRPOTrainer(reward_funcs=_rewards(settings), **common)
    return made


def _rewards(settings: Settings) -> list[Callable[..., list[float]]]:
    """The same two rewards as functions of TRL's."""
    task, generations = settings.task, settings.grpo.generations

    def numbers(completions: Any) -> np.ndarray:
        texts = [completion[0]["content"] for completion in completions]
        return parse_answers(texts, task.low, task.high).reshape(-1, generations)

    def regression(completions: Any, target: list[float], **_: Any) -> list[float]:
        found = regression_reward(
            settings.grpo.reward, numbers(completions), target[::generations], task.low, task.high
        )
        return list(found.reshape(-1))

    def formatted(completions: Any, **_: Any) -> list[float]:
        return list(format_reward(numbers(completions)).reshape(-1))

    return [regression, formatted]


class _Steps:
    """A trainer whose steps are taken one by one, with a clock on each phase."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
        self._optimizer = torch.optim.AdamW(trainer.model.parameters(), lr=1e-5)
        self._batches = iter(trainer.get_train_dataloader())
        self._seconds: dict[str, float] = {}
        self._inputs: Any = None
        for name, phase in (("_generate", "rollout"), ("_calculate_rewards", "reward")):
            setattr(trainer, name, self._clocked(getattr(trainer, name), phase))

    def _clocked(self, work: Callable[..., Any], phase: str) -> Callable[..., Any]:
        def clocked(*args: Any, **kwargs: Any) -> Any:
            with self._clock(phase):
                return work(*args, **kwargs)

        return clocked

    @contextmanager
    def _clock(self, phase: str) -> Iterator[None]:
        _settle()
        start = time.perf_counter()
        yield
        _settle()
        self._seconds[phase] = self._seconds.get(phase, 0.0) + time.perf_counter() - start

    def step(self) -> dict[str, float]:
        """Takes one optimizer step; seconds by phase."""
        self._seconds = {}
        with self._clock("step"):
            for _ in range(self._trainer.args.gradient_accumulation_steps):
                batch = next(self._batches)
                self._inputs = self._trainer._prepare_inputs(batch)
                with self._clock("policy pass"):
                    self._trainer.compute_loss(self._trainer.model, self._inputs).backward()
                self._trainer._step += 1
            with self._clock("optimizer"):
                torch.nn.utils.clip_grad_norm_(self._trainer.model.parameters(), 1.0)
                self._optimizer.step()
                self._optimizer.zero_grad()
        return self._seconds

    @property
    def tokens(self) -> tuple[int, int]:
        """Tokens of prompt and of completion in the last step, padded."""
        return self._inputs["prompt_ids"].shape[1], self._inputs["completion_ids"].shape[1]

    def policy_pass_bytes(self) -> int:
        """What the policy pass on the last inputs holds at its fullest, beyond what was held before it."""
        trainer = self._trainer
        if on_accelerator():
            torch.accelerator.reset_peak_memory_stats()
            before = torch.accelerator.memory_allocated()
            trainer.compute_loss(trainer.model, self._inputs).backward()
            return torch.accelerator.max_memory_allocated() - before
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            trainer.compute_loss(trainer.model, self._inputs).backward()
        events: Any = seen.profiler
        sizes = [e for e in events.kineto_results.events() if e.name() == "[memory]"]
        changes = np.array([e.nbytes() for e in sorted(sizes, key=lambda e: e.start_ns())])
        return int(np.cumsum(changes).max())


def _settle() -> None:
    if on_accelerator():
        torch.accelerator.synchronize()
