"""Sampling with vLLM: the arguments for TRL, the tokens that vLLM must not sample, and the weights that it gets."""

from importlib.util import find_spec
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel
from trl import GRPOConfig

from components.errors import ConcordError
from components.settings import Vllm
from components.shared.model.suppression import placeholder_ids

# Why sampling does not share the prefix then.
UNSHARED_REASON = "vLLM samples them, and gets prompt and image once per answer"


def vllm_arguments(vllm: Vllm | None) -> dict[str, Any]:
    """Translates the settings `grpo.vllm` into arguments of GRPOConfig.

    Raises:
        ConcordError: the settings ask for vLLM and it is not installed.
    """
    if vllm is None:
        return {}
    if find_spec("vllm") is None:
        raise ConcordError(
            "grpo.vllm: vLLM is not installed. Install this package's extra of that name (pip install '.[vllm]'), or "
            "set grpo.vllm to null: then the trained model samples its own answers."
        )
    return {
        "use_vllm": True,
        "vllm_mode": vllm.mode,
        "vllm_gpu_memory_utilization": vllm.memory,
        "vllm_server_host": vllm.host,
        "vllm_server_port": vllm.port,
    }


def forbid_placeholders(args: GRPOConfig, model: PreTrainedModel, processor: Any) -> None:
    """Keeps vLLM from sampling placeholder tokens: the bias that suppresses them here is not in the weights it gets."""
    tokens = processor.tokenizer.convert_ids_to_tokens(placeholder_ids(model, processor))
    args.generation_kwargs = {**(args.generation_kwargs or {}), "bad_words": tokens}


def keep_base(model: PeftModel) -> None:
    """Makes `unmerge_adapter` restore the weights that the adapter was merged into.

    TRL merges the adapter to send the weights to vLLM, and has peft subtract it again. In bfloat16 that leaves other
    weights, more of them with every step. Their copies are on the CPU in between.
    """
    merge, unmerge = model.merge_adapter, model.unmerge_adapter
    adapted: list[Any] = [part.get_base_layer() for part in model.modules() if isinstance(part, LoraLayer)]
    kept: list[torch.Tensor] = []

    def merge_adapter(*args: Any, **kwargs: Any) -> None:
        kept[:] = [layer.weight.detach().to("cpu", copy=True) for layer in adapted]
        merge(*args, **kwargs)

    def unmerge_adapter() -> None:
        unmerge()
        for layer, weight in zip(adapted, kept, strict=True):
            layer.weight.data.copy_(weight)
        kept.clear()

    model.merge_adapter, model.unmerge_adapter = merge_adapter, unmerge_adapter
