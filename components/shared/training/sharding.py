"""Full sharding (`launcher.sharding: full`): FSDP 2 divides weights, gradients and optimizer states over the ranks.

Each layer's weights are gathered for its pass and dropped again. Checkpoints are those of unsharded training, so that a
training resumes with or without it, on any number of ranks.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from components.errors import ConcordError
from components.settings import Launcher
from components.shared.training.ranks import ranks
from components.shared.training.trainer_hooks import TrainerHooks


def check_sharding(launcher: Launcher) -> None:
    """Raises ConcordError if weights are to be divided over a single rank."""
    if launcher.sharding == "full" and ranks().num_processes == 1:
        raise ConcordError(
            "launcher.sharding: full divides the weights over several ranks, and there is one. Raise "
            "launcher.num_processes, or set launcher.sharding: none."
        )


def sharding_arguments(launcher: Launcher) -> dict[str, Any]:
    """Arguments for transformers that divide the weights; none where they stay whole."""
    if launcher.sharding == "none":
        return {}
    return {"fsdp": True, "fsdp_config": {"version": 2, "state_dict_type": "FULL_STATE_DICT"}}


def shard(trainer: Any, model: Any) -> Any:
    """Divides a frozen model like the trainer's own; returns it."""
    return fsdp2_prepare_model(trainer.accelerator, model)


@contextmanager
def gathered(model: Any) -> Iterator[None]:
    """Within, every rank holds all weights of a sharded model, and may pass through it as often as it needs.

    Without, the ranks must make the same passes. For a model that is not sharded, nothing changes.
    """
    parts = [part for part in model.modules() if isinstance(part, FSDPModule)]
    groups = [(part, group) for part in parts for group in part._get_fsdp_state()._fsdp_param_groups]
    dropped = [(part, group._reshard_after_forward) for part, group in groups]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part, again in dropped:
            part.set_reshard_after_forward(again, recurse=False)
        drop_gathered(model)


def drop_gathered(model: Any) -> None:
    """Drops weights that stay gathered after a pass for the pass back, which a pass without gradients has not."""
    for part in model.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


class ShardedWeights(TrainerHooks):
    """Mixin for a Trainer whose weights may be sharded; otherwise, everything is the trainer's own.

    Passes run under the autocast of unsharded training, on weights that are gathered as they are stored: FSDP's own
    mixed precision would also round what lies between the layers, and the results would differ.
    """

    def __init__(self, **kwargs: Any) -> None:
        """Takes the trainer's arguments."""
        if (plugin := kwargs["args"].fsdp_plugin_args) is not None:
            plugin["mixed_precision_policy"] = MixedPrecisionPolicy()
            plugin["transformer_cls_names_to_wrap"] = _layers(kwargs["model"])
        super().__init__(**kwargs)

    def create_accelerator_and_postprocess(self) -> None:
        """Creates the accelerator; on CPUs, accelerate forgets about FSDP without a word."""
        super().create_accelerator_and_postprocess()
        state = self.accelerator.state
        if self.args.fsdp_plugin_args is not None and state.distributed_type == DistributedType.MULTI_CPU:
            state.distributed_type = ranks().distributed_type = DistributedType.FSDP
            state.fsdp_plugin = FullyShardedDataParallelPlugin(**self.args.fsdp_plugin_args)
            self.is_fsdp_enabled = True

    def compute_loss_context_manager(self) -> AbstractContextManager[Any]:
        """The context of a training pass."""
        if self.accelerator.is_fsdp2:
            autocast: AbstractContextManager[Any] = self.accelerator.autocast()
            return autocast
        return super().compute_loss_context_manager()

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        norm = super()._get_grad_norm(*args, **kwargs)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.accelerator.is_fsdp2:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        keep = self.args.should_save
        state = tree_map(lambda value: _whole(value, keep), self.optimizer.state_dict())
        if keep:
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not self.accelerator.is_fsdp2:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        # Mapped, so that a rank reads no more than its own part.
        saved = torch.load(Path(checkpoint) / OPTIMIZER_NAME, map_location="cpu", mmap=True, weights_only=True)
        weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        saved["state"] = {
            number: {name: _own_part(value, weights[number]) for name, value in state.items()}
            for number, state in saved["state"].items()
        }
        self.optimizer.load_state_dict(saved)
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not self.accelerator.is_fsdp2:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        weights: dict[str, Any] = {}
        if ranks().is_main_process:  # which sends the others their parts
            for file in sorted(Path(resume_from_checkpoint).glob("*.safetensors")):
                weights |= load_file(file)
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False)
        set_model_state_dict(self.model, weights, options=options)

    def _load_best_model(self) -> None:
        if not self.accelerator.is_fsdp2:
            super()._load_best_model()
            return
        self._load_from_checkpoint(str(self.state.best_model_checkpoint))


def _layers(model: Any) -> list[str]:
    """Names of the classes of a model's layers, each of which is gathered on its own."""
    lists = [part for part in model.modules() if isinstance(part, nn.ModuleList)]
    return sorted({type(layer).__name__ for part in lists for layer in part})


def _whole(value: Any, keep: bool) -> Any:
    """A sharded tensor gathered from all ranks, in main memory; None where it is not kept."""
    if not isinstance(value, DTensor):
        return value
    whole = value.full_tensor()
    return whole.cpu() if keep else None


def _own_part(value: Any, weight: Any) -> Any:
    """This rank's part of a tensor that belongs to a sharded weight and has its shape."""
    if not isinstance(weight, DTensor) or not isinstance(value, Tensor) or value.shape != weight.shape:
        return value
    own = distribute_tensor(value, weight.device_mesh, weight.placements, src_data_rank=None)
    return own.to(weight.device)
