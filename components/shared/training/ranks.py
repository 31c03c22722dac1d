"""The processes of one training: joined at its start, one of them to write, and parted at its end."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from components.shared.model.device import on_accelerator

COLLECTIVE_TIMEOUT = timedelta(minutes=30)  # with which a rank waits for the others, as transformers has it


def ranks() -> PartialState:
    """The processes that torchrun or accelerate has started, joined; on CPU where there is no accelerator."""
    return PartialState(cpu=not on_accelerator(), timeout=COLLECTIVE_TIMEOUT)


@contextmanager
def node_cache() -> Iterator[Path]:
    """A temporary folder that the ranks of one machine have in common; the first of them is to fill it."""
    state = ranks()
    with tempfile.TemporaryDirectory() as own:
        folders = gather_object([own])
        yield Path(folders[state.process_index - max(state.local_process_index, 0)])


def trained(trainer: Any, anew: Callable[[], Any]) -> Any | None:
    """The trained model, whole, on rank 0; None on the others, whose work ends here. The ranks part.

    Args:
        trainer: after its training, on every rank.
        anew: makes such a model as training began with; called on rank 0 where FSDP or DeepSpeed has spread the weights
            over the ranks.
    """
    state, model = ranks(), trainer.model
    if spread(trainer):
        weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        if state.is_main_process:
            from transformers.integrations.deepspeed import unset_hf_deepspeed_config

            unset_hf_deepspeed_config()  # else the new model would be spread as well
            model = anew()
            model.load_state_dict(weights)
    state.wait_for_everyone()
    main = state.is_main_process
    if torch.distributed.is_initialized():
        # Rank 0 may write for longer than the others would wait.
        torch.distributed.destroy_process_group()
    return model if main else None


def spread(trainer: Any) -> bool:
    """Whether FSDP or DeepSpeed may have spread the weights over the ranks."""
    return bool(trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled)
