"""Builds an experiment's model from its config, without pretrained weights, and loads its processor."""

from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PretrainedConfig,
    Qwen2_5_VLProcessor,
)
from trl.trainer.utils import add_fused_lm_head

from components.errors import ConcordError
from components.settings import Settings
from components.shared.model.loading import limit_pixels, weights_dtype
from components.shared.model.lora import trainable
from components.shared.model.model_files import check_model_files
from components.shared.model.quiet import quiet
from components.shared.model.suppression import suppress_placeholders
from components.shared.model.tiny import build_model, build_processor

_REMEDY = "A dry run needs config.json and the processor's files. Set model.name to a hub id or a folder that has them."


def load_processor(settings: Settings) -> Any:
    """Loads the experiment's processor and applies model.max_pixels.

    Raises:
        ConcordError: the processor cannot be loaded, or the model holds a file that can run code.
    """
    quiet()
    model = settings.model
    if model.name == "tiny":
        assert model.tiny is not None  # checked by the settings
        processor: Any = build_processor(model.tiny, [settings.task.question])
    else:
        check_model_files(model.name, model.revision)
        try:
            processor = _load_auto_processor(model.name, model.revision)
        except (OSError, ValueError, ImportError) as error:
            raise _error(model.name, "the processor could not be loaded", error) from error
    processor.tokenizer.padding_side = "left"
    limit_pixels(processor, model.max_pixels)
    return processor


def _load_auto_processor(name: str, revision: str | None) -> Any:
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    try:
        return AutoProcessor.from_pretrained(name, **options)
    except ImportError as error:
        kind = AutoConfig.from_pretrained(name, **options).model_type
        if "orchvision" not in str(error) or kind not in ("qwen2_vl", "qwen2_5_vl"):
            raise
    # Only the video part of the processor needs torchvision, and there are no videos here.
    images = AutoImageProcessor.from_pretrained(name, **options)
    tokenizer = AutoTokenizer.from_pretrained(name, **options)
    return _ImageOnlyProcessor(images, tokenizer, None, chat_template=tokenizer.chat_template)


class _ImageOnlyProcessor(Qwen2_5_VLProcessor):
    """Qwen2-VL's processor without its video part."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        """Accepts None for the missing video processor."""
        return None


def load_config(settings: Settings) -> PretrainedConfig:
    """Loads the config of a model other than the tiny one.

    Raises:
        ConcordError: the config cannot be loaded, or the model holds a file that can run code.
    """
    model = settings.model
    check_model_files(model.name, model.revision)
    try:
        return AutoConfig.from_pretrained(model.name, revision=model.revision, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        raise _error(model.name, "the config could not be loaded", error) from error


def model_type(settings: Settings) -> str:
    """transformers' name of the architecture."""
    return "idefics3" if settings.model.name == "tiny" else str(load_config(settings).model_type)


def build_training_model(
    settings: Settings, processor: Any, device: torch.device, temperature: float, checkpointing: bool
) -> Any:
    """Builds the model as a step trains it, with random weights on `device`, or without weights on the meta device.

    Args:
        temperature: of the log-probs in TRL's path without a shared prefix.
        checkpointing: whether gradient checkpointing is on.

    Raises:
        ConcordError: the config is not one of a vision-language model.
    """
    with torch.device(device):
        model = _model_from_config(settings, processor, device)
        suppress_placeholders(model, processor)
        # TRL's trainers do this too; these outputs are the ones that SFT and GRPO request.
        add_fused_lm_head(model, temperature=temperature, outputs=("log_probs", "entropy", "is_top1"))
        ready = trainable(model, settings.model)
    if checkpointing:
        ready.gradient_checkpointing_enable()
        if ready is not model:
            ready.enable_input_require_grads()
    return ready.train()


def _model_from_config(settings: Settings, processor: Any, device: torch.device) -> Any:
    chosen = settings.model
    # FlashAttention's kernel cannot run on fake tensors; SDPA uses the same kernel on a GPU.
    attention = "sdpa" if device.type in ("meta", "cpu") and "flash" in chosen.attention else chosen.attention
    if chosen.name == "tiny":
        assert chosen.tiny is not None
        with torch.device("cpu"):  # small, and some of its weights are computed
            model: Any = build_model(chosen.tiny, processor, settings.sft.seed)
        model = model.to(device, weights_dtype(chosen))
        model.set_attn_implementation(attention)
        return model
    try:
        return AutoModelForImageTextToText.from_config(
            load_config(settings), dtype=weights_dtype(chosen), attn_implementation=attention, trust_remote_code=False
        )
    except (ValueError, ImportError) as error:
        raise _error(chosen.name, "the vision-language model could not be built", error) from error


def _error(name: str, problem: str, error: Exception) -> ConcordError:
    first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return ConcordError(f"{name}: {problem}: {first}\n{_REMEDY}")
