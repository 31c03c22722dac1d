"""The one console: messages of people's concern go to stderr, so that stdout holds results alone."""

from rich.console import Console

console = Console(stderr=True, highlight=False)
