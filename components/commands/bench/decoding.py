"""Times reading numbers off images: by the answer tree, and by generating text."""

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from components.commands.bench.timed_steps import synchronize
from components.commands.bench.trainers import Material
from components.settings import Task
from components.shared.model.answer_distribution import level_by_level
from components.shared.model.answer_tree import AnswerTree, answer_tree
from components.shared.model.generation import generate_answers, image_batches, inference, prepared
from components.shared.model.lora import vision_tower
from components.shared.model.number_reader import FLOOR, log_probabilities
from components.shared.model.prompts import completion_text, max_answer_tokens
from components.shared.model.shared_prefix import encode, pad_fields
from components.shared.rows.rows import read_rows, slice_rows
from components.shared.scoring.answers import parse_answers

TEACHING_IMAGES = 8  # per step

# Name -> a function that reads all images with a processor.
Ways = dict[str, Callable[[Any], list[Any]]]


def measure_decoding(material: Material, images: int, rounds: int, taught: int) -> dict[str, Any]:
    """Reads the same images by the tree and by `generate`, alternating; the first round is a warm-up.

    Weights that are random would leave no branch of the tree likely, and no text would end. So the model is taught the
    form of the answers first; of the readings it learns little, which leaves nearly all branches.

    Args:
        taught: steps of that.

    Returns:
        `images`, `at_once`; `rates`: images per second by way, one per round; `ratios`: the tree's rate over
        `generate`'s; `profiles`: by way, one pass in parts; `kept`: nodes per image above FLOOR, `nodes`: of the tree;
        `valid`: share of texts with a valid answer; `mass`: mean probability of all numbers.
    """
    settings = material.settings
    model, processor = material.load()
    tree, size = answer_tree(processor, settings.task), settings.evaluate.batch_size
    teach(model, processor, material, taught)
    length = max_answer_tokens(processor, settings.task)

    def rows() -> Any:
        return slice_rows(read_rows(material.ingest, "train"), 0, images)

    def by_tree(tool: Any) -> list[Any]:
        return [found for _, found in log_probabilities(model, tool, rows(), tree, size)]

    def by_text(tool: Any) -> list[Any]:
        return [text for _, texts in generate_answers(model, tool, rows(), size, length) for text in texts]

    ways: Ways = {"tree": by_tree, "generate": by_text}
    return {
        "images": images,
        "at_once": size,
        **measure_rates(ways, processor, images, rounds),
        "profiles": {way: profile(model, processor, ways[way]) for way in ways},
        "kept": kept_nodes(model, processor, rows(), tree, size),
        "nodes": tree.nodes,
        "valid": float(np.isfinite(parse_answers(by_text(processor), settings.task.low, settings.task.high)).mean()),
        "mass": float(np.exp(np.concatenate(by_tree(processor))).sum(axis=1).mean()),
    }


def measure_rates(ways: Ways, processor: Any, images: int, rounds: int, deadline: float = math.inf) -> dict[str, Any]:
    """Images per second of each way, alternating; the first round is a warm-up.

    Args:
        deadline: of `time.monotonic`; one round is measured in any case.

    Returns:
        `rates` by way, one per round, and `ratios` of the first way to the second.
    """
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds + 1):
        if number > 1 and time.monotonic() > deadline:
            break
        for way in list(ways)[:: 1 if number % 2 else -1]:
            seconds = _seconds(partial(ways[way], processor))
            if number:
                rates[way].append(images / seconds)
    first, second = rates.values()
    return {"rates": rates, "ratios": [a / b for a, b in zip(first, second, strict=True)]}


def teach(model: Any, processor: Any, material: Material, steps: int) -> None:
    """Teacher forcing on a few of the images, in random order."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    (table,) = (batch for batch in slice_rows(read_rows(material.ingest, "train", 4096), 0, 4096))
    rng = np.random.default_rng(0)
    model.train()
    for _ in range(steps):
        part = table.take(rng.choice(table.num_rows, min(TEACHING_IMAGES, table.num_rows), replace=False))
        loss = _completion_loss(model, processor, material.settings.task, part)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def _completion_loss(model: Any, processor: Any, task: Task, part: Any) -> torch.Tensor:
    ((_, images, questions),) = image_batches([part], part.num_rows)
    batch = prepared(model, processor, images, questions)
    texts = [completion_text(processor, target, task) for target in part.column("target").to_pylist()]
    answers = processor.tokenizer(
        texts, add_special_tokens=False, padding=True, padding_side="right", return_tensors="pt"
    )
    ids, known = answers.input_ids.to(model.device), answers.attention_mask.to(model.device)
    asked, mask = batch.pop("input_ids"), batch.pop("attention_mask")
    logits = model(
        input_ids=torch.cat([asked, ids], dim=1),
        attention_mask=torch.cat([mask, known], dim=1),
        logits_to_keep=ids.shape[1] + 1,
        use_cache=False,
        **pad_fields(batch, ids.shape[1]),
    ).logits[:, :-1]
    return cross_entropy(logits.float().flatten(0, 1), torch.where(known.bool(), ids, -100).flatten())


def kept_nodes(model: Any, processor: Any, rows: Any, tree: AnswerTree, size: int, floor: float = FLOOR) -> float:
    """Mean number of inner nodes per image whose probability is at least the floor."""
    kept: list[int] = []
    with inference(model):
        for _, images, questions in image_batches(rows, size):
            batch = prepared(model, processor, images, questions)
            prefix = encode(model, batch.pop("input_ids"), batch.pop("attention_mask"), batch)
            kept += level_by_level(model, prefix, tree, floor).nodes.tolist()
    return float(np.mean(kept))


class _TimedProcessor:
    """A processor that adds up the seconds it takes."""

    def __init__(self, processor: Any) -> None:
        self._processor, self.seconds = processor, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        output = self._processor(*args, **kwargs)
        self.seconds += time.perf_counter() - start
        return output


class _PassTimer:
    """Within, times the forward passes of a model, and those of its vision tower apart.

    `generate` encodes images before its first pass, the tree within it.

    Attributes:
        passes: tokens per row, seconds without the vision tower, and whether the cache was empty.
        images: seconds of the vision tower.
    """

    def __init__(self, model: Any) -> None:
        tower = vision_tower(model)
        self.passes: list[tuple[int, float, bool]] = []
        self.images = 0.0
        self._start, self._images_before, self._new, self._images_start = 0.0, 0.0, True, 0.0
        self._hooks = [
            model.register_forward_pre_hook(self._before, with_kwargs=True),
            model.register_forward_hook(self._after, with_kwargs=True),
            tower.register_forward_pre_hook(self._before_images),
            tower.register_forward_hook(self._after_images),
        ]

    def __enter__(self) -> "_PassTimer":
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _before(self, _: Any, __: Any, given: dict[str, Any]) -> None:
        cache = given.get("past_key_values")
        self._new, self._images_before = cache is None or not cache.get_seq_length(), self.images
        self._start = _now()

    def _after(self, _: Any, __: Any, given: dict[str, Any], ___: Any) -> None:
        seconds = _now() - self._start - (self.images - self._images_before)
        self.passes.append((given["input_ids"].shape[1], seconds, self._new))

    def _before_images(self, *_: Any) -> None:
        self._images_start = _now()

    def _after_images(self, *_: Any) -> None:
        self.images += _now() - self._images_start


def profile(model: Any, processor: Any, run: Callable[[Any], object]) -> list[dict[str, Any]]:
    """Runs once and divides the time: processor, vision tower, first pass of each batch, later passes, the rest.

    Returns:
        One entry per part: `part`, `tokens` per image and pass (0 outside the language model), `seconds`.
    """
    processed = _TimedProcessor(processor)
    with _PassTimer(model) as timer:
        whole = _seconds(lambda: run(processed))
    parts: dict[int, dict[str, Any]] = {}
    number = 0
    for tokens, seconds, new in timer.passes:
        number = 0 if new else number + 1
        part = parts.setdefault(number, {"part": f"pass {number}" if number else "prompt", "tokens": 0, "seconds": 0.0})
        part["tokens"], part["seconds"] = max(part["tokens"], tokens), part["seconds"] + seconds
    known = processed.seconds + timer.images + sum(part["seconds"] for part in parts.values())
    return [
        {"part": "processor", "tokens": 0, "seconds": processed.seconds},
        {"part": "vision tower", "tokens": 0, "seconds": timer.images},
        *parts.values(),
        {"part": "rest", "tokens": 0, "seconds": whole - known},
    ]


def _now() -> float:
    synchronize()
    return time.perf_counter()


def _seconds(run: Callable[[], object]) -> float:
    start = _now()
    run()
    return _now() - start
