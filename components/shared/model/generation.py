"""Generates greedy answers to a stream of rows, in batches."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from transformers import BatchFeature, PreTrainedModel

from components.errors import ConcordError
from components.settings import Task
from components.shared.model.precision import autocast
from components.shared.model.prompts import prompt_with_image
from components.shared.rows.images import REMEDY, RGB_BYTES, BadImageError, decode_image
from components.shared.scoring.answers import parse_answers

# Bytes of decoded images in a batch; an ordinary batch has fewer, and one of huge images becomes several.
MAX_BATCH_BYTES = 1 << 30


def processed(processor: Any, images: list[Image.Image], questions: list[str]) -> BatchFeature:
    """The processor's output for one image and question per row; token ids are padded on the left."""
    texts = [
        processor.apply_chat_template(prompt_with_image(question), add_generation_prompt=True, tokenize=False)
        for question in questions
    ]
    batch: BatchFeature = processor(text=texts, images=[[image] for image in images], padding=True, return_tensors="pt")
    return batch


def prepared(model: PreTrainedModel, processor: Any, images: list[Image.Image], questions: list[str]) -> dict[str, Any]:
    """`processed`, on the model's device and in the dtype of its weights."""
    batch = processed(processor, images, questions).to(model.device)
    return {key: value.to(model.dtype) if torch.is_floating_point(value) else value for key, value in batch.items()}


def image_batches(
    rows: Iterable[pa.RecordBatch],
    size: int,
    unreadable: dict[str, str] | None = None,
    grey_bits: int | None = None,
) -> Iterator[tuple[list[str], list[Image.Image], list[str]]]:
    """Yields ids, decoded images and questions of at most `size` rows at a time, and of about `MAX_BATCH_BYTES`.

    Args:
        rows: record batches with the columns id, image and question.
        unreadable: receives id -> reason for each image that cannot be decoded, which is then left out.
        grey_bits: the task's, see `decode_image`.

    Raises:
        ConcordError: an image cannot be decoded, and `unreadable` is None.
    """
    for chunk in rows:
        for start in range(0, chunk.num_rows, size):
            found: list[tuple[str, Image.Image, str]] = []
            used = 0
            for row in chunk.slice(start, size).select(["id", "image", "question"]).to_pylist():
                try:
                    image = decode_image(row["image"]["bytes"], grey_bits)
                except BadImageError as error:
                    if unreadable is None:
                        raise ConcordError(f"image {row['id']}: {error}. {REMEDY}") from None
                    unreadable[row["id"]] = str(error)
                    continue
                found.append((row["id"], image, row["question"]))
                used += RGB_BYTES * image.width * image.height
                del image
                if used >= MAX_BATCH_BYTES:
                    yield _columns(found)
                    found, used = [], 0
            if found:
                yield _columns(found)


def _columns(found: list[tuple[str, Image.Image, str]]) -> tuple[list[str], list[Image.Image], list[str]]:
    ids, images, questions = (list(column) for column in zip(*found, strict=True))
    return ids, images, questions


def prepared_batches(
    model: PreTrainedModel,
    processor: Any,
    rows: Iterable[pa.RecordBatch],
    size: int,
    unreadable: dict[str, str] | None = None,
    grey_bits: int | None = None,
) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """Yields ids and `prepared` inputs of at most `size` rows at a time.

    Some processors refuse single images, as Qwen2.5-VL's does where one side is 200 times as long as the other.

    Args:
        unreadable: receives id -> reason for each image that cannot be decoded or is refused, which is then left out.
        grey_bits: the task's, see `decode_image`.

    Raises:
        ConcordError: there is such an image, and `unreadable` is None.
    """
    for ids, images, questions in image_batches(rows, size, unreadable, grey_bits):
        try:
            batch = prepared(model, processor, images, questions)
        except ValueError:
            refused = refusals(processor, images, questions)
            if not refused:
                raise
            if unreadable is None:
                first = min(refused)
                raise ConcordError(f"image {ids[first]}: {refused[first]}. {REMEDY}") from None
            unreadable |= {ids[row]: reason for row, reason in refused.items()}
            kept = [row for row in range(len(ids)) if row not in refused]
            if not kept:
                continue
            ids = [ids[row] for row in kept]
            batch = prepared(model, processor, [images[row] for row in kept], [questions[row] for row in kept])
        images.clear()  # not kept while the model computes and the next batch is decoded
        yield ids, batch


def refusals(processor: Any, images: list[Image.Image], questions: list[str]) -> dict[int, str]:
    """Row -> reason of the images that the processor refuses, of those that decode."""
    reasons = {}
    for row, (image, question) in enumerate(zip(images, questions, strict=True)):
        try:
            processed(processor, [image], [question])
        except ValueError as error:
            reasons[row] = f"refused by the model's processor ({error})"
    return reasons


@contextmanager
def inference(model: PreTrainedModel) -> Iterator[None]:
    """Within, the model is in eval mode, keeps no gradients, and computes in the dtype of the settings."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), autocast(model):
            yield
    finally:
        model.train(training)


def generate_greedy(
    model: PreTrainedModel, processor: Any, images: list[Image.Image], questions: list[str], max_new_tokens: int
) -> list[str]:
    """Generates the greedy completion of each image and question, as text without special tokens."""
    return _generate(model, processor, prepared(model, processor, images, questions), max_new_tokens)


def _generate(model: PreTrainedModel, processor: Any, batch: dict[str, Any], max_new_tokens: int) -> list[str]:
    generate: Any = model.generate
    sequences = generate(**batch, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1)
    return processor.batch_decode(sequences[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def generate_answers(
    model: PreTrainedModel,
    processor: Any,
    rows: Iterable[pa.RecordBatch],
    batch_size: int,
    max_new_tokens: int,
    unreadable: dict[str, str] | None = None,
    grey_bits: int | None = None,
) -> Iterator[tuple[list[str], list[str]]]:
    """Yields ids and raw completions, batch by batch; the model is in eval mode while it generates.

    Args:
        rows: record batches with the columns id, image and question.
        unreadable, grey_bits: see `prepared_batches`.
    """
    with inference(model):
        for ids, batch in prepared_batches(model, processor, rows, batch_size, unreadable, grey_bits):
            yield ids, _generate(model, processor, batch, max_new_tokens)


def collect_answers(
    model: PreTrainedModel,
    processor: Any,
    rows: Iterable[pa.RecordBatch],
    batch_size: int,
    max_new_tokens: int,
    task: Task,
    unreadable: dict[str, str] | None = None,
) -> tuple[list[str], list[str], np.ndarray]:
    """Runs `generate_answers` over all rows and returns ids, raw completions and parsed values.

    The values are `(N,) float64`, with NaN where a completion has no valid answer.
    """
    ids: list[str] = []
    texts: list[str] = []
    found = generate_answers(model, processor, rows, batch_size, max_new_tokens, unreadable, task.grey_bits)
    for batch_ids, batch_texts in found:
        ids += batch_ids
        texts += batch_texts
    return ids, texts, parse_answers(texts, task.low, task.high)
