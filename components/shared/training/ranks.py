"""The ranks of one training: how they start, share a folder, and hand the model to rank 0 at the end."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather, gather_object, parse_flag_from_env

from components.shared.io.stop import stop_signal
from components.shared.model.device import on_accelerator

COLLECTIVE_TIMEOUT = timedelta(minutes=30)  # for which a rank waits for the others; transformers' default


def ranks() -> PartialState:
    """Joins the processes that torchrun or accelerate started; on CPU where there is no accelerator."""
    return PartialState(cpu=not on_accelerator(), timeout=COLLECTIVE_TIMEOUT)


@contextmanager
def node_cache() -> Iterator[Path]:
    """Creates a temporary folder that the ranks of one machine share; the first of them should fill it."""
    state = ranks()
    with tempfile.TemporaryDirectory() as own:
        folders = gather_object([own])
        yield Path(folders[state.process_index - max(state.local_process_index, 0)])


def model_on_main_rank(trainer: Any, build: Callable[[], Any]) -> Any | None:
    """Ends the process group and returns the trained model on rank 0; None on the others, whose work ends here.

    Args:
        trainer: after its training, on every rank.
        build: builds a model like the one that training started with; called on rank 0 to hold the gathered weights
            where FSDP or DeepSpeed has sharded them.
    """
    state, model = ranks(), trainer.model
    if weights_are_sharded(trainer):
        weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        if state.is_main_process:
            from transformers.integrations.deepspeed import unset_hf_deepspeed_config

            unset_hf_deepspeed_config()  # otherwise the new model would be sharded too
            model = build()
            model.load_state_dict({name: weights[name] for name in model.state_dict()})  # no reference adapter
    state.wait_for_everyone()
    main = state.is_main_process
    if torch.distributed.is_initialized():
        # Rank 0 may take longer to write than the others would wait for it.
        torch.distributed.destroy_process_group()
    return model if main else None


def agreed(due: bool) -> tuple[int, bool]:
    """What all ranks do at the end of a step; every rank must call it.

    Args:
        due: whether a checkpoint is due by this rank's clock; rank 0's counts.

    Returns:
        The same on every rank: the signal that asked any of them to stop, 0 if none did; and `due` of rank 0.
    """
    state = ranks()
    if state.num_processes == 1:
        return stop_signal(), due
    found = gather(torch.tensor([[stop_signal(), int(due)]], device=state.device))
    return int(found[:, 0].max()), bool(found[0, 1])


def divided_among_ranks(count: int, read: Callable[[int, int], np.ndarray]) -> np.ndarray:
    """Reads `count` rows divided among the ranks; returns them on every rank, in order: `(count, ...)`.

    Each rank reads the same number of rows, since every rank must join the collectives; if the count is not a multiple
    of the number of ranks, their shares overlap.

    Args:
        count: at least 1.
        read: takes the first row and the number of rows of a share; returns an array with one entry per row.
    """
    state = ranks()
    share = -(-count // state.num_processes)
    starts = [min(rank * share, count - share) for rank in range(state.num_processes)]
    own = torch.as_tensor(read(starts[state.process_index], share), device=state.device)
    parts = gather(own).cpu().numpy().reshape(state.num_processes, share, *own.shape[1:])
    whole = np.empty((count, *own.shape[1:]), parts.dtype)
    for start, part in zip(starts, parts, strict=True):
        whole[start : start + share] = part
    return whole


def weights_are_sharded(trainer: Any) -> bool:
    """Returns whether FSDP or DeepSpeed may have sharded the weights over the ranks."""
    return bool(trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled)


def gathers_whole_passes(trainer: Any) -> bool:
    """Returns whether weights are gathered for whole forward passes only, as FSDP 1 and DeepSpeed do it."""
    return weights_are_sharded(trainer) and not trainer.accelerator.is_fsdp2


def shards_weights() -> bool:
    """Returns whether accelerate's launcher chose FSDP or DeepSpeed; known before there is a trainer."""
    return parse_flag_from_env("ACCELERATE_USE_FSDP") or parse_flag_from_env("ACCELERATE_USE_DEEPSPEED")
