"""Runs a model of any size forward and backward on fake tensors and counts the bytes it would allocate.

torch's FakeTensorMode knows the shape and storage of every result but computes none. Vision-language models need some
values nevertheless: how many patches an image has, which tokens belong to it, whether it is blank. All of these come
from the processor. So the processor's outputs and integer tensors are real here, and so is everything computed from
them alone. The weights, and everything computed from weights, are fake.
"""

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves

_INDEXING = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default)


class FakeTensorMemory(FakeTensorMode):
    """A context in which new floating-point tensors are fake, and that counts the bytes of all fake tensors.

    Attributes:
        live: bytes of all fake tensors that exist; views share their storage's bytes.
        peak: largest `live` since `peak` was last set.
    """

    def __init__(self) -> None:
        """Starts with no tensors."""
        super().__init__(allow_non_fake_inputs=True)
        self.live = self.peak = 0
        self._storages: set[int] = set()

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs one torch operation, on real or on fake tensors."""
        kwargs = kwargs or {}
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if inputs and not any(isinstance(tensor, FakeTensor) for tensor in inputs):
            return _run_real(func, args, kwargs)
        if func in _INDEXING:
            # The number of elements that a mask selects depends on its content.
            args = (args[0], [part for index in args[1] for part in _mask_to_indices(index)], *args[2:])
        result = super().dispatch(func, types, args, kwargs)
        if not inputs and any(
            isinstance(leaf, Tensor) and not leaf.is_floating_point() for leaf in tree_leaves(result)
        ):
            return _run_real(func, args, kwargs)
        for leaf in tree_leaves(result):
            if isinstance(leaf, FakeTensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages:
            return
        self._storages.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._storages.discard(key)
        self.live -= size


def _run_real(func: Any, args: Any, kwargs: Any) -> Any:
    with torch._C._DisableTorchDispatch():
        return func(*args, **kwargs)


def _mask_to_indices(index: Tensor | None) -> list[Tensor | None]:
    """Converts a boolean mask to index tensors; returns any other index unchanged."""
    if index is None or index.dtype != torch.bool or isinstance(index, FakeTensor):
        return [index]
    with torch._C._DisableTorchDispatch():
        return list(index.nonzero(as_tuple=True))


def allocate_weights(model: nn.Module, mode: FakeTensorMemory) -> None:
    """Gives a model on the meta device fake weights and gradients; tied weights stay tied."""
    allocated: dict[int, Tensor] = {}
    with mode:
        for part in model.modules():
            for store in (part._parameters, part._buffers):
                for name, value in store.items():
                    if value is not None:
                        if id(value) not in allocated:
                            allocated[id(value)] = _like(value)
                        store[name] = allocated[id(value)]  # type: ignore[assignment]
        allocate_gradients(model)


def _like(value: Tensor) -> Tensor:
    empty = torch.zeros(value.shape, dtype=value.dtype, device="cpu")
    return nn.Parameter(empty, requires_grad=value.requires_grad) if isinstance(value, nn.Parameter) else empty


def allocate_gradients(model: nn.Module) -> None:
    """Sets zero gradients, so that a following pass does not allocate them."""
    for weight in model.parameters():
        if weight.requires_grad:
            weight.grad = torch.zeros_like(weight)
