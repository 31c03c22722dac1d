"""Chooses between an accelerator and the CPU; no other module does."""

import torch


def device() -> torch.device:
    """Returns this machine's accelerator, or the CPU if it has none."""
    # Without `check_available`, torch returns the accelerator it was built for even if the machine has none.
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def on_accelerator() -> bool:
    """Whether `device()` is an accelerator."""
    return device().type != "cpu"
