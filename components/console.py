"""The console for messages and progress. It writes to stderr; stdout is for results."""

from rich.console import Console

console = Console(stderr=True, highlight=False)
