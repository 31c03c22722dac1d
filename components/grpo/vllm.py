"""Answers drawn by vLLM in place of the model that is trained: what TRL is told, and what vLLM must not say."""

from importlib.util import find_spec
from typing import Any

from transformers import PreTrainedModel
from trl import GRPOConfig

from components.errors import ConcordError
from components.settings import Vllm
from components.shared.model.suppression import placeholder_ids

# The trainer says it where it says why a prefix is not shared.
UNSHARED = "vLLM draws them, and is given each answer's prompt and picture anew"


def vllm_arguments(vllm: Vllm | None) -> dict[str, Any]:
    """Our settings in TRL's words.

    Raises:
        ConcordError: vLLM is asked for and not installed.
    """
    if vllm is None:
        return {}
    if find_spec("vllm") is None:
        raise ConcordError(
            "grpo.vllm: vLLM is not installed. Install this package's extra of that name (pip install '.[vllm]'), or "
            "set grpo.vllm to null: then the model that is trained draws its own answers."
        )
    return {
        "use_vllm": True,
        "vllm_mode": vllm.mode,
        "vllm_gpu_memory_utilization": vllm.memory,
        "vllm_server_host": vllm.host,
        "vllm_server_port": vllm.port,
    }


def forbid_placeholders(args: GRPOConfig, model: PreTrainedModel, processor: Any) -> None:
    """Keeps vLLM from sampling placeholder tokens: the bias that suppresses them here is in no weights that it gets."""
    words = processor.tokenizer.convert_ids_to_tokens(placeholder_ids(model, processor))
    args.generation_kwargs = {**(args.generation_kwargs or {}), "bad_words": words}
