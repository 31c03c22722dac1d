"""Times whole training steps of every trainer by phase, measures the memory of the policy pass, and times decoding."""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from components.commands.bench.decoding import measure_decoding
from components.commands.bench.tags import with_split_tags
from components.commands.bench.timed_steps import TimedSteps, timed_steps
from components.commands.bench.trainers import EXACT, SAMPLED, TRL, Material, Side, write_images
from components.errors import ConcordError
from components.settings import Settings, TinyModel
from components.shared.model.loading import load, save
from components.shared.model.tiny import build_model, build_processor

WITH_KL = (SAMPLED, *EXACT, TRL)
SIDES = (*WITH_KL, *(replace(side, name=f"{side.name}-no-kl", kl=False) for side in WITH_KL))


@dataclass(frozen=True)
class Case:
    """One case of the benchmark.

    Attributes:
        title: heading of its table.
        image_size: side of the images in pixels; each patch becomes one token. None: as in the settings.
        prompts, generations: of one step; None: as in the settings.
        split_tags: whether a tag is three tokens instead of one; completions are then 4 tokens longer.
        decoded: images that are decoded; None: decoding is not measured.
        at_once: images decoded in one batch; None: as in the settings.
        taught: training steps of the model before that.
        limit: an exact step should take at most this part of the sampled one; None: nothing is expected.
        faster: decoding by the tree should be this many times as fast as `generate`.
    """

    title: str
    image_size: int | None = None
    prompts: int | None = None
    generations: int | None = None
    split_tags: bool = False
    decoded: int | None = None
    at_once: int | None = None
    taught: int = 150
    limit: float | None = None
    faster: float = 1.0

    def settings(self, base: Settings) -> Settings:
        """The experiment's settings with the changes of this case."""
        step = {"prompts": self.prompts, "generations": self.generations}
        changes = {name: value for name, value in step.items() if value}
        evaluate = {"batch_size": self.at_once} if self.at_once else {}
        tiny = _tiny(base).model_copy(update={"image_size": self.image_size} if self.image_size else {})
        return base.model_copy(
            update={
                "grpo": base.grpo.model_copy(update=changes),
                "evaluate": base.evaluate.model_copy(update=evaluate),
                "model": base.model.model_copy(update={"tiny": tiny}),
            }
        )


_DEFAULT = Case("the default experiment", decoded=384, limit=1.0)
_HEAVY = Case(
    "256 image tokens", image_size=256, prompts=4, generations=8, decoded=96, at_once=32, limit=0.75,
    faster=2.0,
)  # fmt: skip
CASES = {
    "default": _DEFAULT,
    "default-split": replace(_DEFAULT, title="the default experiment, tags of three tokens", split_tags=True),
    "image-heavy": _HEAVY,
    "image-heavy-split": replace(_HEAVY, title="256 image tokens, tags of three tokens", split_tags=True),
    "g16": replace(_HEAVY, title="256 image tokens, G 16", generations=16, decoded=None),
}


def _tiny(settings: Settings) -> TinyModel:
    if settings.model.tiny is None:
        raise ConcordError(
            "model.tiny: missing in the settings. bench builds its model from it; use settings that have it."
        )
    return settings.model.tiny


def measure(case: Case, base: Settings, rounds: int) -> dict[str, Any]:
    """Times alternating steps of all trainers; the first step of each is a warm-up.

    Returns:
        `sides`: for each of `SIDES`, `phases` (median, least and most seconds), `rounds`, and with the KL
        `policy_pass_bytes`; `ratios`, TRL's time over the sampled one's, one per round; `of_sampled` and `trl_over`,
        the same for every exact side: its time over the sampled one's, and TRL's over its; token counts, and the
        speed-up limits that follow from them; `decoding`, as `measure_decoding` returns it, or None.
    """
    settings = case.settings(base)
    with tempfile.TemporaryDirectory() as scratch:
        material = _material(case, settings, Path(scratch))
        steps = {side.name: timed_steps(material.trainer(side, rounds + 2, Path(scratch, side.name))) for side in SIDES}
        times: dict[str, list[dict[str, float]]] = {name: [] for name in steps}
        for number in range(rounds + 1):
            for name, one in steps.items():
                seconds = one.step()
                if number:
                    times[name].append(seconds)
        sides = {
            side.name: {
                "phases": spread(times[side.name]),
                "rounds": times[side.name],
                "policy_pass_bytes": steps[side.name].policy_pass_bytes() if side.kl else None,
            }
            for side in SIDES
        }
        decoding = measure_decoding(material, case.decoded, rounds, case.taught) if case.decoded else None
    return {
        "title": case.title,
        "limit": case.limit,
        "faster": case.faster,
        "beta": settings.grpo.beta,
        **_token_counts(settings, steps),
        "ratios": _ratios(times, TRL.name, SAMPLED.name),
        **_exact_ratios(times),
        "sides": sides,
        "decoding": decoding,
    }


def _token_counts(settings: Settings, steps: dict[str, TimedSteps]) -> dict[str, Any]:
    g = settings.grpo.generations
    (p, length), (_, nodes) = steps[SAMPLED.name].tokens, steps[EXACT[0].name].tokens
    return {
        "prompts": settings.grpo.prompts,
        "generations": g,
        "prompt_tokens": p,
        "completion_tokens": length,
        "tree_nodes": nodes,
        "limit_language_model": g * (p + length) / (p + g * length),
        "limit_vision_tower": g,
    }


def _ratios(times: dict[str, list[dict[str, float]]], slow: str, fast: str) -> list[float]:
    return [a["step"] / b["step"] for a, b in zip(times[slow], times[fast], strict=True)]


def _exact_ratios(times: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, list[float]]]:
    """Each exact side against the sampled and the stock one with the same KL, one ratio per round."""
    exact = [side for side in SIDES if side.estimator != "sampled"]
    return {
        "of_sampled": {side.name: _ratios(times, side.name, _like(side, SAMPLED)) for side in exact},
        "trl_over": {side.name: _ratios(times, _like(side, TRL), side.name) for side in exact},
    }


def _like(side: Side, other: Side) -> str:
    """Name of the other side with this one's KL."""
    return other.name if side.kl else f"{other.name}-no-kl"


def spread(times: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Median, least and most of each phase."""
    columns = {phase: np.array([one[phase] for one in times]) for phase in times[0]}
    return {
        phase: {"median": float(np.median(values)), "least": float(values.min()), "most": float(values.max())}
        for phase, values in columns.items()
    }


def _material(case: Case, settings: Settings, folder: Path) -> Material:
    """A tiny model with random weights and images of its size."""
    tiny = _tiny(settings)
    processor = build_processor(tiny, [settings.task.question])
    if case.split_tags:
        processor = with_split_tags(processor)
    save(build_model(tiny, processor, seed=0), processor, folder / "model")
    ingest = write_images(folder / "ingest", settings, tiny.image_size, per_reading=4)
    return Material(settings, ingest, lambda: load(folder / "model", settings.model))
