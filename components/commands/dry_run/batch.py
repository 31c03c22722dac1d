"""Builds one batch like a training step's, from the training split or from generated images."""

from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from components.settings import Settings
from components.shared.model.generation import decode_image
from components.shared.model.prompts import completion, prompt_with_image
from components.shared.rows.rows import read_rows, slice_rows

SIDE = 448  # pixels of a generated image if the settings name no size


@dataclass(frozen=True)
class Batch:
    """One device's batch.

    Attributes:
        fields: the processor's output for U inputs; token ids and mask `(U, P)`, padded on the left.
        completions: `(N, L)` token ids of maximum length.
        owners: `(N,)` index of the input that each completion belongs to.
        image_tokens, prompt_tokens: `(U,)` per input; prompt tokens do not include image tokens.
        image_source: where the images come from, as text for the user.
    """

    fields: dict[str, Tensor]
    completions: Tensor
    owners: Tensor
    image_tokens: Tensor
    prompt_tokens: Tensor
    image_source: str


def build_batch(
    settings: Settings, processor: Any, ingest: Path, inputs: int, answers: int, length: int | None
) -> Batch:
    """Builds a batch of `inputs` with `answers` completions each.

    Args:
        ingest: row shards; if the folder does not exist, noise images are generated.
        length: tokens of each completion; None: those of the longest correct answer and its end token.
    """
    rows = _rows(ingest, inputs, settings.task.grey_bits) if ingest.is_dir() else None
    side = _side(settings)
    if rows is None:
        rng = np.random.default_rng(0)
        noise = [Image.fromarray(rng.integers(0, 255, (side, side, 3), dtype=np.uint8)) for _ in range(inputs)]
        rows = [(settings.task.question, image) for image in noise]
        image_source = f"generated noise, {side} x {side} pixels"
    else:
        image_source = f"the first rows of {ingest}"
    texts = [
        processor.apply_chat_template(prompt_with_image(question), add_generation_prompt=True, tokenize=False)
        for question, _ in rows
    ]
    images = [[image] for _, image in rows]
    fields = dict(processor(text=texts, images=images, padding=True, return_tensors="pt"))
    image_tokens = (fields["input_ids"] == _image_token(processor)).sum(1)
    answer = processor.tokenizer(completion(settings.task.high, settings.task)[0]["content"], add_special_tokens=False)
    ids = torch.tensor([*answer.input_ids, processor.tokenizer.eos_token_id])
    if length is not None:
        ids = ids.repeat(1 + length // len(ids))[:length]
    owners = torch.arange(inputs).repeat_interleave(answers)
    prompt_tokens = fields["attention_mask"].sum(1) - image_tokens
    return Batch(fields, ids.expand(len(owners), -1), owners, image_tokens, prompt_tokens, image_source)


def _rows(ingest: Path, count: int, grey_bits: int | None) -> list[tuple[str, Image.Image]]:
    """Question and image of the first `count` training rows; starts over if there are fewer."""
    rows = [
        (row["question"], decode_image(row["image"]["bytes"], grey_bits))
        for part in slice_rows(read_rows(ingest, "train"), 0, count)
        for row in part.select(["question", "image"]).to_pylist()
    ]
    return [rows[i % len(rows)] for i in range(count)]


def _side(settings: Settings) -> int:
    model = settings.model
    if model.name == "tiny" and model.tiny is not None:
        return model.tiny.image_size
    return isqrt(model.max_pixels) if model.max_pixels else SIDE


def _image_token(processor: Any) -> int:
    known = getattr(processor, "image_token_id", None)
    return int(known if known is not None else processor.tokenizer.convert_tokens_to_ids(processor.image_token))
