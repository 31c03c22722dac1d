"""Chooses between an accelerator and the CPU; no other module does."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def device() -> torch.device:
    """Returns this machine's accelerator, or the CPU if it has none."""
    # Without `check_available`, torch returns the accelerator it was built for even if the machine has none.
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def on_accelerator() -> bool:
    """Whether `device()` is an accelerator."""
    return device().type != "cpu"


def device_name() -> str:
    """The maker's name of the accelerator, where torch knows it, or its type."""
    properties = getattr(torch, device().type).get_device_properties(device()) if on_accelerator() else None
    return str(getattr(properties, "name", device().type.upper()))


@contextmanager
def random_state_kept(device: torch.device) -> Iterator[None]:
    """Within, random numbers are drawn as before; afterwards, the same ones come again."""
    on_cpu = device.type == "cpu"
    with torch.random.fork_rng(devices=[]) if on_cpu else torch.random.fork_rng([device], device_type=device.type):
        yield


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """Peak bytes that `run` allocates on `device` on top of what was allocated before."""
    if device.type != "cpu":
        torch.accelerator.reset_peak_memory_stats()
        before = torch.accelerator.memory_allocated()
        run()
        return int(torch.accelerator.max_memory_allocated() - before)
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events: Any = profiler.profiler
    sizes = [event for event in events.kineto_results.events() if event.name() == "[memory]"]
    changes = np.array([event.nbytes() for event in sorted(sizes, key=lambda event: event.start_ns())])
    return int(np.cumsum(changes).max())
