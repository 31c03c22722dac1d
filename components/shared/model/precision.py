"""The dtype that a model computes in, which its weights need not have."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

_ATTRIBUTE = "computes_in"  # on the model, where copies of it and adapters around it find it too


def compute_in(model: Any, dtype: torch.dtype) -> None:
    """Makes `inference` compute in `dtype`, whatever the dtype of the weights is."""
    setattr(model, _ATTRIBUTE, dtype)


def autocast(model: Any) -> AbstractContextManager[Any]:
    """The autocast of the trainers where the model computes in bfloat16; else nothing."""
    if getattr(model, _ATTRIBUTE, torch.float32) == torch.float32:
        return nullcontext()
    return torch.autocast(model.device.type, dtype=getattr(model, _ATTRIBUTE))
