"""Loads models and processors from a folder, a hub or a config, and saves them as safetensors."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import torch
from safetensors import SafetensorError
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

from components.errors import ConcordError
from components.settings import Model, Settings
from components.shared.io.transient import concord_error
from components.shared.model.adapter import save_weights, with_adapter
from components.shared.model.model_files import REMEDY as _REMEDY
from components.shared.model.model_files import check_model_files
from components.shared.model.precision import compute_in
from components.shared.model.prompts import special_token
from components.shared.model.quiet import quiet
from components.shared.model.suppression import suppress_placeholders
from components.shared.model.tiny import build_model, build_processor
from components.shared.rows.rows import read_table

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def weights_dtype(settings: Model) -> torch.dtype:
    """The dtype of the weights that training starts from.

    Trained weights are float32, and autocast rounds them to bfloat16 in each pass: bfloat16 has 8 significant bits, so
    a weight plus an update of less than 1/512 of it is the same weight again. Frozen weights are never updated.
    """
    return DTYPES[settings.dtype] if settings.lora else torch.float32


def load(
    source: str | Path, settings: Model, revision: str | None = None, weights: torch.dtype | None = None
) -> tuple[PreTrainedModel, Any]:
    """Loads a model and its processor, and suppresses placeholder tokens. The adapter of a folder is attached, frozen.

    Args:
        source: a local model folder, or a hub id.
        settings: dtype of the computation, attention implementation and max_pixels.
        revision: the hub commit; required for a hub id.
        weights: `weights_dtype` where the model is trained; None: as they are stored, and float32 where that is the
            dtype of the computation.

    Raises:
        ConcordError: `source` has no model that AutoModelForImageTextToText can load, lacks some of its weights, has an
            adapter of another model, or holds a file that can run code.
    """
    quiet()
    if weights is None and settings.dtype == "float32":
        weights = torch.float32
    if isinstance(source, Path) and not source.is_dir():
        raise ConcordError(f"{source}: no such folder. {_REMEDY}")  # transformers would look for it on the hub
    check_model_files(source, revision)
    try:
        model, info = AutoModelForImageTextToText.from_pretrained(
            source,
            revision=revision,
            dtype=weights or "auto",
            attn_implementation=settings.attention,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        processor = AutoProcessor.from_pretrained(source, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise concord_error(f"{source}: no vision-language model could be loaded: {first}\n{_REMEDY}", error) from error
    if missing := sorted(info["missing_keys"]):
        # transformers would fill them with random values.
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ConcordError(f"{source}: its weights lack {', '.join(missing[:3])}{more}. {_REMEDY}")
    processor.tokenizer.padding_side = "left"
    limit_pixels(processor, settings.max_pixels)
    suppress_placeholders(model, processor)
    compute_in(model, DTYPES[settings.dtype])
    return with_adapter(model, Path(source)), processor


def limit_pixels(processor: Any, max_pixels: int | None) -> None:
    """Makes the processor shrink images to at most `max_pixels` pixels; None changes nothing.

    Raises:
        ConcordError: the processor does not limit images by their number of pixels, as Qwen2-VL's does.
    """
    if max_pixels is None:
        return
    images = processor.image_processor
    size: Any = getattr(images, "size", None)
    least, largest = getattr(size, "shortest_edge", None), getattr(size, "longest_edge", None)
    # For processors that know max_pixels, the two "edges" are numbers of pixels; for others they are lengths.
    if "max_pixels" not in getattr(images, "valid_kwargs", dict).__annotations__ or not least or not largest:
        raise ConcordError(f"model.max_pixels: {type(images).__name__} has no limit in pixels. Set it to null.")
    if max_pixels < least:
        raise ConcordError(
            f"model.max_pixels: {max_pixels} is less than the processor's minimum of {least} pixels. Increase it."
        )
    images.size = replace(size, longest_edge=max_pixels)


def base_model(settings: Settings, ingest: Path) -> tuple[PreTrainedModel, Any]:
    """Returns the model that training starts from and its processor: tiny with random weights, or pretrained.

    Args:
        ingest: row shards; the tiny model's tokenizer is trained on the questions of the training split.

    Raises:
        ConcordError: the model cannot be loaded, or the question contains one of its special tokens.
    """
    quiet()
    if settings.model.name != "tiny":
        pretrained = load(settings.model.name, settings.model, settings.model.revision, weights_dtype(settings.model))
        if token := special_token(pretrained[1], settings.task.question):
            raise ConcordError(
                f"task.question: {token} is a special token of {settings.model.name}, not text. Leave it out."
            )
        return pretrained
    tiny = settings.model.tiny
    assert tiny is not None  # checked by the settings
    questions = sorted(pc.unique(read_table(ingest, "train", ["question"])["question"]).to_pylist())
    processor = build_processor(tiny, questions)
    model: Any = build_model(tiny, processor, settings.sft.seed)
    for weight in model.parameters():  # not the buffers, which from_pretrained keeps in float32
        weight.data = weight.data.to(weights_dtype(settings.model))
    model.set_attn_implementation(settings.model.attention)
    limit_pixels(processor, settings.model.max_pixels)
    suppress_placeholders(model, processor)
    compute_in(model, DTYPES[settings.model.dtype])
    return model, processor


def save(model: Any, processor: Any, folder: Path) -> None:
    """Saves weights as safetensors, config and processor; transformers' Auto classes load them, and peft an adapter."""
    save_weights(model, folder)
    # A tokenizer saves its last padding settings, which would make the files of equal models differ.
    if (backend := getattr(processor.tokenizer, "backend_tokenizer", None)) is not None:
        backend.no_padding()
        backend.no_truncation()
    processor.save_pretrained(folder)
