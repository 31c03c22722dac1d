"""The model of an experiment from its config, without weights, and the processor that goes with it."""

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
from components.shared.model.loading import DTYPES, limit_pixels
from components.shared.model.lora import trainable
from components.shared.model.quiet import quiet
from components.shared.model.suppression import suppress_placeholders
from components.shared.model.tiny import build_model, build_processor

_REMEDY = "A dry run needs config.json and the processor's files: from the hub, or from a folder that model.name names."


def processor_of(settings: Settings) -> Any:
    """The experiment's processor, pictures limited as the settings say.

    Raises:
        ConcordError: it cannot be loaded.
    """
    quiet()
    model = settings.model
    if model.name == "tiny":
        assert model.tiny is not None  # the settings see to it
        processor: Any = build_processor(model.tiny, [settings.task.question])
    else:
        try:
            processor = _loaded(model.name, model.revision)
        except (OSError, ValueError, ImportError) as error:
            raise _unbuilt(model.name, "no processor could be loaded", error) from error
    processor.tokenizer.padding_side = "left"
    limit_pixels(processor, model.max_pixels)
    return processor


def _loaded(name: str, revision: str | None) -> Any:
    where: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    try:
        return AutoProcessor.from_pretrained(name, **where)
    except ImportError as error:
        kind = AutoConfig.from_pretrained(name, **where).model_type
        if "orchvision" not in str(error) or kind not in ("qwen2_vl", "qwen2_5_vl"):
            raise
    # Only the processor's part for videos needs torchvision, and here are none.
    images = AutoImageProcessor.from_pretrained(name, **where)
    tokenizer = AutoTokenizer.from_pretrained(name, **where)
    return _WithoutVideo(images, tokenizer, None, chat_template=tokenizer.chat_template)


class _WithoutVideo(Qwen2_5_VLProcessor):
    """Qwen2-VL's processor for pictures alone."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        """None for the part that is missing is right."""
        return None


def config_of(settings: Settings) -> PretrainedConfig:
    """The config of a model that is not the tiny one.

    Raises:
        ConcordError: it cannot be loaded.
    """
    model = settings.model
    try:
        return AutoConfig.from_pretrained(model.name, revision=model.revision, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        raise _unbuilt(model.name, "no config could be loaded", error) from error


def model_type(settings: Settings) -> str:
    """The architecture, by transformers' name."""
    return "idefics3" if settings.model.name == "tiny" else str(config_of(settings).model_type)


def build(settings: Settings, processor: Any, device: torch.device, temperature: float, checkpointing: bool) -> Any:
    """The model as a step trains it, with random weights on `device`, or with none on the meta device.

    Args:
        temperature: of the log-probs, where TRL's own path is taken.
        checkpointing: of gradients.

    Raises:
        ConcordError: there is no such vision-language model.
    """
    with torch.device(device):
        model = _plain(settings, processor, device)
        suppress_placeholders(model, processor)
        # As TRL's trainers do, the names being what both of theirs ask for.
        add_fused_lm_head(model, temperature=temperature, outputs=("log_probs", "entropy", "is_top1"))
        ready = trainable(model, settings.model)
    if checkpointing:
        ready.gradient_checkpointing_enable()
        if ready is not model:
            ready.enable_input_require_grads()
    return ready.train()


def _plain(settings: Settings, processor: Any, device: torch.device) -> Any:
    chosen = settings.model
    # The kernel cannot run without content, and SDPA's on a GPU is the same one.
    attention = "sdpa" if device.type in ("meta", "cpu") and "flash" in chosen.attention else chosen.attention
    if chosen.name == "tiny":
        assert chosen.tiny is not None
        with torch.device("cpu"):  # it is small, and some of its weights are computed
            model: Any = build_model(chosen.tiny, processor, settings.sft.seed)
        model = model.to(device, DTYPES[chosen.dtype])
        model.set_attn_implementation(attention)
        return model
    try:
        return AutoModelForImageTextToText.from_config(
            config_of(settings), dtype=DTYPES[chosen.dtype], attn_implementation=attention, trust_remote_code=False
        )
    except (ValueError, ImportError) as error:
        raise _unbuilt(chosen.name, "no vision-language model could be built", error) from error


def _unbuilt(name: str, what: str, error: Exception) -> ConcordError:
    first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return ConcordError(f"{name}: {what}: {first}\n{_REMEDY}")
