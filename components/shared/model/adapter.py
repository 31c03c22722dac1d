"""A LoRA adapter in a model folder, beside the weights that it adapts.

It is never merged into them. A merged weight is rounded to the dtype of the computation, and bfloat16 has 8 significant
bits: the part of a change that is below 1/512 of its weight would be lost.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file

from components.errors import ConcordError
from components.shared.io.atomic import write_json
from components.shared.model.device import random_state_kept

if TYPE_CHECKING:  # importing peft takes over half a second, and most models have no adapter
    from peft import PeftModel

ADAPTER = "adapter"  # the folder in a model folder
NAME = "default"  # peft's name of the adapter that is trained and read
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # peft's names


def save_weights(model: Any, folder: Path) -> None:
    """Saves a model's config and weights as safetensors; those of an adapter apart, and what it adapts as it is."""
    from peft import PeftModel

    if isinstance(model, PeftModel):
        _save_adapter(model, folder)
        base: Any = model.get_base_model()
        base.save_pretrained(folder, state_dict=_base_weights(base), safe_serialization=True)
    else:
        model.save_pretrained(folder, safe_serialization=True)


def _save_adapter(model: "PeftModel", folder: Path) -> None:
    """Saves the adapter for peft; equal adapters give equal bytes on any machine."""
    from peft import get_peft_model_state_dict

    config = model.peft_config[NAME].to_dict() | {"base_model_name_or_path": None, "inference_mode": True}
    (folder / ADAPTER).mkdir(parents=True)
    write_json(
        folder / ADAPTER / CONFIG,
        {name: sorted(value) if isinstance(value, set) else value for name, value in config.items()},
    )
    weights = get_peft_model_state_dict(model, adapter_name=NAME, save_embedding_layers=False)
    save_file(
        {name: value.contiguous() for name, value in weights.items()},
        folder / ADAPTER / WEIGHTS,
        metadata={"format": "pt"},
    )


def _base_weights(base: Any) -> dict[str, Any]:
    """The weights of an adapted model under their names without adapters."""
    weights = base.state_dict().items()
    return {name.replace(".base_layer.", "."): value for name, value in weights if ".lora_" not in name}


def with_adapter(model: Any, folder: Path) -> Any:
    """The model with the adapter of its folder in float32, frozen; the model itself if the folder has none.

    Raises:
        ConcordError: the adapter cannot be read, or is not one of this model.
    """
    if not (folder / ADAPTER).is_dir():
        return model
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    adapter = folder / ADAPTER
    try:
        weights = load_file(adapter / WEIGHTS)
        config: Any = LoraConfig.from_pretrained(str(adapter))
        with random_state_kept(model.device):  # peft draws weights before it gets them
            adapted: Any = get_peft_model(model, config)
        found = set_peft_model_state_dict(adapted, weights)
    except Exception as error:  # peft, safetensors and torch have no common class of errors
        raise ConcordError(f"{adapter}: {_first_line(error)}. {_REMEDY}") from error
    wrong = [*found.unexpected_keys, *(name for name in found.missing_keys if ".lora_" in name)]
    if wrong:
        raise ConcordError(f"{adapter}: {wrong[0]} is not a weight of both adapter and model. {_REMEDY}")
    return adapted.eval()


_REMEDY = (
    f"A model folder has an adapter for its own weights in {ADAPTER}/: {CONFIG} and {WEIGHTS}. Restore the folder."
)


def _first_line(error: Exception) -> str:
    return next((line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()), type(error).__name__)
