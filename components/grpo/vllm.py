"""Sampling with vLLM: the arguments for TRL, and the tokens that vLLM must not sample."""

from importlib.util import find_spec
from typing import Any

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
