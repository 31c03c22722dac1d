"""Selects the trained weights: all of them, all but the vision tower, or LoRA adapters."""

from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from components.errors import ConcordError
from components.settings import Model

VISION_NAMES = ("vision_tower", "vision_model", "visual")


def vision_tower(model: PreTrainedModel) -> nn.Module:
    """Returns the model's vision tower, found by the names that transformers' architectures use.

    Raises:
        ConcordError: the model has none.
    """
    for holder in (model, getattr(model, "model", None)):
        for name in VISION_NAMES:
            tower = getattr(holder, name, None)
            if isinstance(tower, nn.Module):
                return tower
    raise ConcordError(
        f"model.freeze_vision: {type(model).__name__} has no vision tower named {', '.join(VISION_NAMES)}. "
        "Set it to false, or use another model."
    )


def trainable(model: PreTrainedModel, settings: Model) -> PreTrainedModel | PeftModel:
    """Freezes the vision tower and adds LoRA adapters, as the settings ask for."""
    if settings.freeze_vision:
        vision_tower(model).requires_grad_(False)
    if settings.lora is None:
        return model
    return get_peft_model(model, lora_config(settings))


def lora_config(settings: Model) -> LoraConfig:
    """peft's settings; a frozen vision tower gets no adapters."""
    lora = settings.lora
    assert lora is not None
    exclude = rf".*({'|'.join(VISION_NAMES)}).*" if settings.freeze_vision else None
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets,
        exclude_modules=exclude,
        task_type="CAUSAL_LM",
    )


def merged(model: Any) -> PreTrainedModel:
    """Merges the adapters, if there are any, into the weights and returns the plain model."""
    return model.merge_and_unload() if isinstance(model, PeftModel) else model
