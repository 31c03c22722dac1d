"""Measures training steps, decoding, agreement and a resume of Qwen2.5-VL with random weights, within a time limit."""

import gc
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from components.commands.bench.decoding import Ways, measure_rates, profile
from components.commands.bench.gpu_model import QWEN_3B, TINY, Dimensions, StandInProcessor, build_qwen, build_stand_in
from components.commands.bench.measure import spread
from components.commands.bench.timed_steps import synchronize, timed_steps
from components.commands.bench.trainers import EXACT, SAMPLED, TRL, Material, write_images
from components.console import console
from components.settings import Augment, Lora, Settings
from components.shared.model.answer_distribution import from_prompts, level_by_level, one_by_one
from components.shared.model.answer_tree import AnswerTree, answer_tree
from components.shared.model.device import device, on_accelerator, peak_bytes
from components.shared.model.generation import generate_answers, image_batches, inference, prepared
from components.shared.model.precision import compute_in
from components.shared.model.prompts import max_answer_tokens
from components.shared.model.shared_prefix import encode
from components.shared.rows.rows import read_rows, slice_rows

SIDES = (SAMPLED, EXACT[0], TRL)
RESUME_AT, RESUME_STEPS = 2, 3


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        prompts: inputs of a step.
        decoded, at_once: images that are decoded, and how many in one batch.
        compared: images whose log-probabilities are compared.
        rounds: of steps and of decoding, at most.
    """

    size: Dimensions
    prompts: int
    decoded: int
    at_once: int
    compared: int
    rounds: int


ON_GPU = Plan(QWEN_3B, prompts=4, decoded=64, at_once=16, compared=2, rounds=5)
WITHOUT_GPU = Plan(TINY, prompts=2, decoded=8, at_once=4, compared=2, rounds=1)


class GpuBench:
    """The parts of the measurement; each returns what goes into the JSON file.

    Attributes:
        material: settings and images, and how a model with fresh weights is made.
    """

    def __init__(self, plan: Plan, base: Settings, scratch: Path) -> None:
        """Draws the images; builds no model yet."""
        self.plan, self._scratch = plan, scratch
        self._processor: StandInProcessor = build_stand_in(base.task.question)
        settings = plan_settings(plan, base)
        ingest = write_images(scratch / "ingest", settings, plan.size.side, per_reading=1)
        self.material = Material(settings, ingest, lambda: (self._model(), self._processor))
        self._tree: AnswerTree = answer_tree(self._processor, settings.task)

    def _model(self, dtype: str = "bfloat16") -> Any:
        return build_qwen(self.plan.size, self._processor, dtype, device())

    def parts(self) -> dict[str, Callable[[float], dict[str, Any]]]:
        """Name -> measures it, with a deadline of `time.monotonic` after which no further round begins."""
        return {
            "steps-g4": lambda deadline: self.steps(4, deadline),
            "steps-g8": lambda deadline: self.steps(8, deadline),
            "decoding": self.decoding,
            "agreement": self.agreement,
            "resume": self.resume,
        }

    def steps(self, generations: int, deadline: float) -> dict[str, Any]:
        """Times alternating steps of the sampled, an exact and TRL's trainer; the first of each is a warm-up.

        Returns:
            `generations` and token counts; `sides`: by name `phases`, `rounds` and `peak_bytes` of a whole step beside
            the weights; `ratios`: TRL / sampled, exact / sampled and TRL / exact, one per round.
        """
        grpo = self.material.settings.grpo.model_copy(update={"generations": generations})
        settings = self.material.settings.model_copy(update={"grpo": grpo})
        material, count = replace(self.material, settings=settings), self.plan.rounds + 2
        folder = self._scratch / f"g{generations}"
        steps = {side.name: timed_steps(material.trainer(side, count, folder / side.name)) for side in SIDES}
        times: dict[str, list[dict[str, float]]] = {name: [] for name in steps}
        for number in range(self.plan.rounds + 1):
            if number > 1 and time.monotonic() > deadline:
                break
            for name, one in steps.items():
                seconds = one.step()
                if number:
                    times[name].append(seconds)
        sampled, exact, stock = (np.array([one["step"] for one in times[side.name]]) for side in SIDES)
        (prompt, length), (_, nodes) = steps[SAMPLED.name].tokens, steps[EXACT[0].name].tokens
        return {
            "generations": generations,
            "prompts": grpo.prompts,
            "prompt_tokens": prompt,
            "completion_tokens": length,
            "tree_nodes": nodes,
            "ratios": {
                "trl_over_sampled": (stock / sampled).tolist(),
                "exact_of_sampled": (exact / sampled).tolist(),
                "trl_over_exact": (stock / exact).tolist(),
            },
            "sides": {
                side.name: {
                    "phases": spread(times[side.name]),
                    "rounds": times[side.name],
                    "peak_bytes": peak_bytes(steps[side.name].step, device()),
                }
                for side in SIDES
            },
        }

    def decoding(self, deadline: float) -> dict[str, Any]:
        """Reads images by the tree and by `generate`, alternating.

        Random weights make every branch unlikely, so none is left out: the tree's worst case. No text ends by itself
        either, so `generate` stops after the longest correct answer.
        """
        model, tree, images = self._model(), self._tree, self.plan.decoded
        length = max_answer_tokens(self._processor, self.material.settings.task)

        def rows() -> Any:
            return slice_rows(read_rows(self.material.ingest, "train"), 0, images)

        def by_tree(processor: Any) -> list[Any]:
            found = []
            with inference(model):
                for _, pictures, questions in image_batches(rows(), self.plan.at_once):
                    batch = prepared(model, processor, pictures, questions)
                    prefix = encode(model, batch.pop("input_ids"), batch.pop("attention_mask"), batch)
                    found.append(level_by_level(model, prefix, tree, floor=0).numbers.cpu())
            return found

        def by_text(processor: Any) -> list[Any]:
            return [texts for _, texts in generate_answers(model, processor, rows(), self.plan.at_once, length)]

        ways: Ways = {"tree": by_tree, "generate": by_text}
        return {
            "images": images,
            "at_once": self.plan.at_once,
            "nodes": tree.nodes,
            "new_tokens": length,
            **measure_rates(ways, self._processor, images, self.plan.rounds, deadline),
            "profiles": {way: profile(model, self._processor, run) for way, run in ways.items()},
            "peak_bytes": {way: peak_bytes(partial(run, self._processor), device()) for way, run in ways.items()},
        }

    def agreement(self, _: float) -> dict[str, Any]:
        """Compares log-probabilities of all numbers: in one pass, level by level, and one by one; in both dtypes.

        Returns:
            `images`, `numbers`, `pairs`: name -> `largest` and `mean` absolute difference.
        """
        found: dict[str, torch.Tensor] = {}
        model = self._model()
        for dtype in ("bfloat16", "float32"):
            if dtype == "float32":
                model = model.float()
                compute_in(model, torch.float32)
            for way, log_p in self._log_probs(model).items():
                found[f"{way}, {dtype}"] = log_p.double().cpu()
        pairs = [(f"{way}, {dtype}", f"one by one, {dtype}") for dtype in ("bfloat16", "float32") for way in _WAYS[:2]]
        pairs += [(f"{way}, bfloat16", "one by one, float32") for way in _WAYS]
        return {
            "images": self.plan.compared,
            "numbers": len(self._tree.values),
            "pairs": {
                f"{a} - {b}": {"largest": float(gap.max()), "mean": float(gap.mean())}
                for a, b in pairs
                for gap in [(found[a] - found[b]).abs()]
            },
        }

    def _log_probs(self, model: Any) -> dict[str, torch.Tensor]:
        rows = slice_rows(read_rows(self.material.ingest, "train"), 0, self.plan.compared)
        ((_, pictures, questions),) = image_batches(rows, self.plan.compared)
        with inference(model):
            batch = prepared(model, self._processor, pictures, questions)
            inputs = batch.pop("input_ids"), batch.pop("attention_mask"), batch
            results = (
                from_prompts(model, *inputs, self._tree),
                level_by_level(model, encode(model, *inputs), self._tree, floor=0).numbers,
                one_by_one(model, *inputs, self._tree, rows_at_once=16),
            )
        return dict(zip(_WAYS, results, strict=True))

    def resume(self, _: float) -> dict[str, Any]:
        """Trains the exact estimator for a few steps, then again from the checkpoint before the last.

        Returns:
            `trainings`: seconds of both; bytes of the checkpoint, and the largest difference of the trained weights.
        """
        folder, trained, seconds = self._scratch / "resume", [], []
        for checkpoint in (None, folder / f"checkpoint-{RESUME_AT}"):
            torch.manual_seed(0)  # for the adapters
            trainer = self.material.trainer(EXACT[0], RESUME_STEPS, folder, checkpoint_every=RESUME_AT)
            trainer.follow(None)
            synchronize()
            start = time.perf_counter()
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            synchronize()
            seconds.append(time.perf_counter() - start)
            weights = {name: value for name, value in trainer.model.named_parameters() if value.requires_grad}
            trained.append({name: value.detach().cpu() for name, value in weights.items()})
            size = sum(
                path.stat().st_size for path in (folder / f"checkpoint-{RESUME_AT}").rglob("*") if path.is_file()
            )
            del trainer, weights
            free_memory()
        shutil.rmtree(folder)
        whole, resumed = trained
        return {
            "steps": RESUME_STEPS,
            "resumed_at": RESUME_AT,
            "trainings": {"whole": seconds[0], "resumed": seconds[1]},
            "checkpoint_bytes": size,
            "largest_difference": max(float((whole[name] - resumed[name]).abs().max()) for name in whole),
            "trained_weights": sum(value.numel() for value in whole.values()),
        }


_WAYS = ("one pass", "level by level", "one by one")


def plan_settings(plan: Plan, base: Settings) -> Settings:
    """LoRA and a frozen vision tower in bf16, as in the recipes; no augmentation."""
    return base.model_copy(
        update={
            "model": base.model.model_copy(
                update={
                    "dtype": "bfloat16",
                    "attention": "sdpa",
                    "freeze_vision": True,
                    "lora": Lora(r=64, alpha=128, dropout=0.05, targets="all-linear"),
                    "tiny": None,
                }
            ),
            "grpo": base.grpo.model_copy(
                update={
                    "prompts": plan.prompts,
                    "accumulation": 1,
                    "gradient_checkpointing": True,
                    "recent": None,
                    "vllm": None,
                    "augment": Augment(rotate=0, shift=0, zoom=0, light=0, noise=0),
                }
            ),
        }
    )


def free_memory() -> None:
    """Drops trainers and models that only refer to each other, and returns the accelerator's unused memory."""
    gc.collect()
    if on_accelerator():
        torch.accelerator.empty_cache()


def run_parts(bench: GpuBench, limit: float) -> Iterator[tuple[str, dict[str, Any]]]:
    """Measures part after part; each may take its share of the time that is left.

    Args:
        limit: seconds for all parts together. A part that would begin after it is skipped.

    Yields:
        Name and figures of a part with its `seconds`, or with `skipped`, the reason.
    """
    end, parts = time.monotonic() + limit, bench.parts()
    for number, (name, part) in enumerate(parts.items()):
        start = time.monotonic()
        found: dict[str, Any] = {"skipped": f"the limit of {limit:.0f} s was reached"}
        if start < end:
            share = (end - start) / (len(parts) - number)
            try:
                found = part(start + share / 2)  # models are built, and the last round ends, outside its rounds
            except Exception as error:  # the other parts are still worth the machine's time
                console.print_exception()
                found = {"skipped": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}
            free_memory()
        found["seconds"] = time.monotonic() - start
        console.print(f"{name}: {found.get('skipped', 'done')}, {found['seconds']:.0f} s")
        yield name, found
