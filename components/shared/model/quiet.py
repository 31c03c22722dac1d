"""Silences messages of transformers and torch, so that the console shows only ours."""

import warnings

from transformers.utils import logging

_EXPECTED = (
    ".*gradient_checkpointing.*deprecated.*",  # TRL still uses the old name
    ".*is_gradient_checkpointing.*deprecated.*",
    ".*pin_memory.*no accelerator.*",
    ".*FSDP2-wrapped module.*returned a view tensor.*",  # nothing changes it in place
)


def quiet() -> None:
    """Hides progress bars, advice and expected warnings; errors are still shown. Calling it twice is harmless."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    for message in _EXPECTED:
        warnings.filterwarnings("ignore", message=message)
