"""Which weights are trained: all of them, all but the vision tower, or low-rank adapters."""

from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from components.errors import ConcordError
from components.settings import Model

VISION_NAMES = ("vision_tower", "vision_model", "visual")


def vision_tower(model: PreTrainedModel) -> nn.Module:
    """The model's vision tower, by the names that transformers' architectures use.

    Raises:
        ConcordError: none is found.
    """
    for holder in (model, getattr(model, "model", None)):
        for name in VISION_NAMES:
            found = getattr(holder, name, None)
            if isinstance(found, nn.Module):
                return found
    raise ConcordError(
        f"model.freeze_vision: {type(model).__name__} has no vision tower under {', '.join(VISION_NAMES)}; "
        "set it to false, or take another model"
    )


def trainable(model: PreTrainedModel, settings: Model) -> PreTrainedModel | PeftModel:
    """The model, ready to train as the settings say."""
    if settings.freeze_vision:
        vision_tower(model).requires_grad_(False)
    if settings.lora is None:
        return model
    return get_peft_model(model, lora_config(settings))


def lora_config(settings: Model) -> LoraConfig:
    """peft's settings; with a frozen vision tower, no adapter goes into it."""
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
    """The plain model, with the adapters added into its weights where it has any."""
    return model.merge_and_unload() if isinstance(model, PeftModel) else model
