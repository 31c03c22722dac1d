"""Finds out whether a model has trained parameters without a use, which DDP must look for in every step.

LLaVA reads an inner layer of its vision tower, so the layers after it get no gradient. Without such layers the search
walks over the graph of each step for nothing, and torch warns of it.
"""

from typing import Any

from accelerate.utils import DistributedType
from PIL import Image

from components.shared.model.device import random_state_kept
from components.shared.model.generation import prepared
from components.shared.model.precision import autocast
from components.shared.training.ranks import weights_are_sharded

SIDE = 224  # pixels of the picture that is passed; processors refuse very small ones


def has_unused_parameters(model: Any, processor: Any) -> bool:
    """Whether a pass over one picture and a question leaves trained parameters without a gradient.

    Takes one pass forward and backward; changes neither weights nor random states.
    """
    batch = prepared(model, processor, [Image.new("RGB", (SIDE, SIDE))], ["?"])
    with random_state_kept(model.device):
        with autocast(model):
            loss = model(**batch).logits.float().sum()
        loss.backward()
    unused = any(weight.requires_grad and weight.grad is None for weight in model.parameters())
    model.zero_grad(set_to_none=True)
    return unused


def look_for_unused(trainer: Any) -> None:
    """Makes DDP look for unused parameters where the trainer's model has some, and nowhere else."""
    accelerator = trainer.accelerator
    if accelerator.distributed_type != DistributedType.NO and not weights_are_sharded(trainer):
        unused = has_unused_parameters(trainer.model, trainer.processing_class)
        accelerator.ddp_handler.find_unused_parameters = unused
