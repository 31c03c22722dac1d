"""Models and processors: from config, from a folder, from a hub; and back to a folder, as safetensors."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import torch
from safetensors import SafetensorError
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

from components.errors import ConcordError
from components.settings import Model, Settings
from components.shared.model.quiet import quiet
from components.shared.model.suppression import suppress_placeholders
from components.shared.model.tiny import build_model, build_processor
from components.shared.rows.rows import read_table

_REMEDY = "Give a hub id with its revision, or a folder with a model's safetensors weights and its processor."
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load(place: str | Path, settings: Model, revision: str | None = None) -> tuple[PreTrainedModel, Any]:
    """A model and its processor, placeholder tokens suppressed.

    Args:
        place: a folder that `save` wrote, any other local model folder, or a hub id.
        settings: dtype and attention implementation.
        revision: the hub commit; needed for a hub id.

    Raises:
        ConcordError: nothing that AutoModelForImageTextToText can load is there, or not the whole of it.
    """
    quiet()
    if isinstance(place, Path) and not place.is_dir():
        raise ConcordError(f"{place}: no such folder. {_REMEDY}")  # else it would be asked of a hub
    try:
        model, info = AutoModelForImageTextToText.from_pretrained(
            place,
            revision=revision,
            dtype=DTYPES[settings.dtype],
            attn_implementation=settings.attention,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        processor = AutoProcessor.from_pretrained(place, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConcordError(f"{place}: no vision-language model could be loaded: {first}\n{_REMEDY}") from error
    if missing := sorted(info["missing_keys"]):
        # transformers would give them random values.
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ConcordError(f"{place}: its weights lack {', '.join(missing[:3])}{more}. {_REMEDY}")
    processor.tokenizer.padding_side = "left"
    limit_pixels(processor, settings.max_pixels)
    suppress_placeholders(model, processor)
    return model, processor


def limit_pixels(processor: Any, most: int | None) -> None:
    """Has the processor make larger pictures smaller, down to `most` pixels; None leaves it as it is.

    Raises:
        ConcordError: it is none of those that go by the number of pixels, as Qwen2-VL's does.
    """
    if most is None:
        return
    images = processor.image_processor
    size: Any = getattr(images, "size", None)
    least, largest = getattr(size, "shortest_edge", None), getattr(size, "longest_edge", None)
    # Where max_pixels is known, the edges are numbers of pixels; elsewhere they are lengths.
    if "max_pixels" not in getattr(images, "valid_kwargs", dict).__annotations__ or not least or not largest:
        raise ConcordError(f"model.max_pixels: {type(images).__name__} goes by no number of pixels. Set it to null.")
    if most < least:
        raise ConcordError(
            f"model.max_pixels: {most} is less than the {least} pixels that the processor makes at least"
        )
    images.size = replace(size, longest_edge=most)


def base_model(settings: Settings, ingest: Path) -> tuple[PreTrainedModel, Any]:
    """The model that training starts from: the tiny one with random weights, or the pretrained one.

    Args:
        ingest: folder of the row shards; the tiny model's tokenizer learns the questions of the training split.
    """
    quiet()
    if settings.model.name != "tiny":
        return load(settings.model.name, settings.model, settings.model.revision)
    tiny = settings.model.tiny
    assert tiny is not None  # the settings see to it
    questions = sorted(pc.unique(read_table(ingest, "train", ["question"])["question"]).to_pylist())
    processor = build_processor(tiny, questions)
    model: Any = build_model(tiny, processor, settings.sft.seed)
    model = model.to(DTYPES[settings.model.dtype])
    model.set_attn_implementation(settings.model.attention)
    limit_pixels(processor, settings.model.max_pixels)
    suppress_placeholders(model, processor)
    return model, processor


def save(model: PreTrainedModel, processor: Any, folder: Path) -> None:
    """Weights as safetensors with config and processor, loadable by the Auto classes alone."""
    model.save_pretrained(folder, safe_serialization=True)
    # A tokenizer remembers how it padded last, and would write that down: the same model, in other bytes.
    if (backend := getattr(processor.tokenizer, "backend_tokenizer", None)) is not None:
        backend.no_padding()
        backend.no_truncation()
    processor.save_pretrained(folder)
