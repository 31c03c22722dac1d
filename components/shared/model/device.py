"""The one place that chooses between an accelerator and the CPU."""

import torch


def device() -> torch.device:
    """The accelerator of this machine, else the CPU.

    Without `check_available` torch names the accelerator that it was built for, whether or not the machine has one.
    """
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def on_accelerator() -> bool:
    """Whether `device()` is an accelerator."""
    return device().type != "cpu"
