"""Selects the trained weights: all of them, all but the vision tower, or a LoRA adapter."""

from copy import deepcopy
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from components.errors import ConcordError
from components.settings import Model
from components.shared.model.adapter import NAME

VISION_NAMES = ("vision_tower", "vision_model", "visual")
REFERENCE = "ref"  # TRL's name for the frozen copy of an adapter that training continues


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


def trainable(model: Any, settings: Model) -> PreTrainedModel | PeftModel:
    """The model that is trained: without its vision tower if that is frozen, or with an adapter, new or its own.

    Args:
        model: as `load` returns it. If it has an adapter, this one is trained further.

    Raises:
        ConcordError: the settings ask for another adapter than the model's own.
    """
    if isinstance(model, PeftModel):
        return _continued(model, settings)
    if settings.freeze_vision:
        vision_tower(model).requires_grad_(False)
    return get_peft_model(model, lora_config(settings)) if settings.lora else model


def _continued(model: PeftModel, settings: Model) -> PeftModel:
    own = _adapter(model)
    asked = _adapter(_skeleton(model, settings)) if settings.lora else {}
    if own != asked:
        raise ConcordError(
            f"model.lora: {_described(asked)}, and the model that training starts from has {_described(own)}. Set "
            "model.lora and model.freeze_vision to those that it was trained with, or start from another model."
        )
    config: Any = model.peft_config[NAME]
    config.inference_mode = False
    model.set_adapter(NAME)  # makes it trainable
    return model


def _skeleton(model: PeftModel, settings: Model) -> PeftModel:
    """The model without weights, with the adapter of the settings: peft says which modules it is added to."""
    base: Any = model.get_base_model()
    with torch.device("meta"):
        return get_peft_model(type(base)(deepcopy(base.config)), lora_config(settings))


def _adapter(model: PeftModel) -> dict[str, Any]:
    """What the settings say about an adapter, and the shapes of its weights by name."""
    config: Any = model.peft_config[NAME]
    shapes = {name: weight.shape for name, weight in model.named_parameters() if f".{NAME}." in name}
    return {"r": config.r, "alpha": config.lora_alpha, "dropout": config.lora_dropout, **shapes}


def _described(adapter: dict[str, Any]) -> str:
    if not adapter:
        return "null"
    modules = sum(name.endswith(f".lora_A.{NAME}.weight") for name in adapter)
    return f"r {adapter['r']}, alpha {adapter['alpha']:g}, dropout {adapter['dropout']:g} on {modules} modules"


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


def add_reference(model: PeftModel) -> None:
    """Adds REFERENCE, a frozen copy of the adapter as it is now; TRL's GRPOTrainer does the same."""
    model.add_adapter(REFERENCE, model.peft_config[NAME])
    for name, weight in model.named_parameters():
        if f".{NAME}." in name:
            model.get_parameter(name.replace(f".{NAME}.", f".{REFERENCE}.")).data.copy_(weight.data)
