"""Tensors without content: a model of any size runs forward and backward, and the bytes that it would hold are counted.

torch's FakeTensorMode knows the shape and the storage of every result and computes none. Vision-language models want
to know a few values all the same: how many patches an image has, which tokens are its, whether it is blank. All of
that comes from the processor. So here what the processor gave is real, whole numbers are, and whatever is computed from
these alone; the weights have no content, nor has anything that they touch.
"""

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves

_INDEXING = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default)


class Weightless(FakeTensorMode):
    """A context in which new tensors with fractions have no content, nor what comes of them.

    Attributes:
        live: bytes of all tensors without content that are held, views counted once.
        peak: the most that `live` was since it was last set.
    """

    def __init__(self) -> None:
        """Nothing is held yet."""
        super().__init__(allow_non_fake_inputs=True)
        self.live = self.peak = 0
        self._held: set[int] = set()

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """One operation of torch."""
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if given and not any(isinstance(tensor, FakeTensor) for tensor in given):
            return _really(func, args, kwargs)
        if func in _INDEXING:
            # How many elements a mask chooses is a question to its content.
            args = (args[0], [place for index in args[1] for place in _places(index)], *args[2:])
        made = super().dispatch(func, types, args, kwargs)
        if not given and any(isinstance(leaf, Tensor) and not leaf.is_floating_point() for leaf in tree_leaves(made)):
            return _really(func, args, kwargs)
        for leaf in tree_leaves(made):
            if isinstance(leaf, FakeTensor):
                self._hold(leaf.untyped_storage())
        return made

    def _hold(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._held:
            return
        self._held.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._let_go, key, size)

    def _let_go(self, key: int, size: int) -> None:
        self._held.discard(key)
        self.live -= size


def _really(func: Any, args: Any, kwargs: Any) -> Any:
    with torch._C._DisableTorchDispatch():
        return func(*args, **kwargs)


def _places(index: Tensor | None) -> list[Tensor | None]:
    """An index as it is; a mask as the indices that it stands for."""
    if index is None or index.dtype != torch.bool or isinstance(index, FakeTensor):
        return [index]
    with torch._C._DisableTorchDispatch():
        return list(index.nonzero(as_tuple=True))


def without_content(model: nn.Module, mode: Weightless) -> None:
    """Gives a model on the meta device weights without content, shared ones shared; gradients stand ready."""
    made: dict[int, Tensor] = {}
    with mode:
        for part in model.modules():
            for store in (part._parameters, part._buffers):
                for name, value in store.items():
                    if value is not None:
                        if id(value) not in made:
                            made[id(value)] = _like(value)
                        store[name] = made[id(value)]  # type: ignore[assignment]
        ready_gradients(model)


def _like(value: Tensor) -> Tensor:
    empty = torch.zeros(value.shape, dtype=value.dtype, device="cpu")
    return nn.Parameter(empty, requires_grad=value.requires_grad) if isinstance(value, nn.Parameter) else empty


def ready_gradients(model: nn.Module) -> None:
    """Zero gradients, so that what a pass allocates is what it needs besides them."""
    for weight in model.parameters():
        if weight.requires_grad:
            weight.grad = torch.zeros_like(weight)
