"""Keeps transformers' and torch's chatter off the screen: what is shown there is ours, and worth reading."""

import warnings

from transformers.utils import logging

_EXPECTED = (
    ".*gradient_checkpointing.*deprecated.*",  # TRL still goes by the old name
    ".*is_gradient_checkpointing.*deprecated.*",
    ".*pin_memory.*no accelerator.*",
)


def quiet() -> None:
    """Errors still come through; bars and advice do not. Calling it again is harmless."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    for message in _EXPECTED:
        warnings.filterwarnings("ignore", message=message)
