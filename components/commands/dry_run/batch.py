"""One batch as a training step sees it: pictures and questions of the training split, or made on the spot."""

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
from components.shared.rows.rows import read_rows, stretch

SIDE = 448  # of a picture that is made here for a model whose settings name no size; the size for measurements


@dataclass(frozen=True)
class Batch:
    """What one device works on at once.

    Attributes:
        fields: what the processor gives for U inputs; token ids and mask `(U, P)`, padded on the left.
        completions: `(N, L)` token ids, as many as there may be.
        owners: `(N,)` the input of each completion.
        image_tokens, prompt_tokens: of each input, `(U,)`; the prompt's are without those of the image.
        pictures: where they come from, in words.
    """

    fields: dict[str, Tensor]
    completions: Tensor
    owners: Tensor
    image_tokens: Tensor
    prompt_tokens: Tensor
    pictures: str


def batch_of(settings: Settings, processor: Any, ingest: Path, inputs: int, answers: int, length: int | None) -> Batch:
    """A batch of `inputs` with `answers` completions each.

    Args:
        ingest: row shards; where there is no such folder, pictures are made.
        length: tokens of each completion; None: those of the longest right answer and its end.
    """
    rows = _rows(ingest, inputs) if ingest.is_dir() else None
    side = _side(settings)
    if rows is None:
        rng = np.random.default_rng(0)
        made = [Image.fromarray(rng.integers(0, 255, (side, side, 3), dtype=np.uint8)) for _ in range(inputs)]
        rows = [(settings.task.question, picture) for picture in made]
        pictures = f"noise, {side} x {side} pixels, made here"
    else:
        pictures = f"the first of {ingest}"
    texts = [
        processor.apply_chat_template(prompt_with_image(question), add_generation_prompt=True, tokenize=False)
        for question, _ in rows
    ]
    images = [[picture] for _, picture in rows]
    fields = dict(processor(text=texts, images=images, padding=True, return_tensors="pt"))
    image = _image_token(processor)
    of_image = (fields["input_ids"] == image).sum(1)
    answer = processor.tokenizer(completion(settings.task.high, settings.task)[0]["content"], add_special_tokens=False)
    ids = torch.tensor([*answer.input_ids, processor.tokenizer.eos_token_id])
    if length is not None:
        ids = ids.repeat(1 + length // len(ids))[:length]
    owners = torch.arange(inputs).repeat_interleave(answers)
    return Batch(
        fields, ids.expand(len(owners), -1), owners, of_image, fields["attention_mask"].sum(1) - of_image, pictures
    )


def _rows(ingest: Path, count: int) -> list[tuple[str, Image.Image]]:
    """Question and picture of the first training rows, from the start again where there are too few."""
    found = [
        (row["question"], decode_image(row["image"]["bytes"]))
        for part in stretch(read_rows(ingest, "train"), 0, count)
        for row in part.select(["question", "image"]).to_pylist()
    ]
    return [found[i % len(found)] for i in range(count)]


def _side(settings: Settings) -> int:
    model = settings.model
    if model.name == "tiny" and model.tiny is not None:
        return model.tiny.image_size
    return isqrt(model.max_pixels) if model.max_pixels else SIDE


def _image_token(processor: Any) -> int:
    known = getattr(processor, "image_token_id", None)
    return int(known if known is not None else processor.tokenizer.convert_tokens_to_ids(processor.image_token))
