"""The console for messages and progress, which writes to stderr (stdout is for results), and the words of a command."""

import re
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path

from rich.console import Console

console = Console(stderr=True, highlight=False)


def print_anything() -> None:
    """Prints `?` for characters that the terminal's encoding lacks, where Python would raise an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")


def with_home(words: Sequence[str]) -> list[str]:
    """Replaces `~` at the start of a word or of a flag's value, where the shell does not: `--out=~/x`, "~/x"."""
    return [re.sub(r"^(--[\w-]+=)?~(?=/|$)", lambda found: f"{found[1] or ''}{Path.home()}", word) for word in words]
