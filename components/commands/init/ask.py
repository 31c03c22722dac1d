"""Asks on a terminal what cannot be guessed; without a terminal, an error names the flag."""

import sys
from collections.abc import Sequence

from rich.prompt import Confirm, IntPrompt, Prompt

from components.console import console
from components.errors import ConcordError
from components.shared.io.text import printable, quoted


def on_terminal() -> bool:
    """Whether a person can answer questions."""
    return sys.stdin.isatty() and console.is_terminal


def choose(what: str, candidates: Sequence[str], flag: str, source: str) -> str:
    """One of several candidates.

    Args:
        what: what is looked for: `the target`.
        candidates: at least two.
        flag: the flag that would name it.
        source: where the candidates were found, for the error.

    Raises:
        ConcordError: there is no terminal to ask on.
    """
    if not on_terminal():
        listed = ", ".join(quoted(candidate) for candidate in candidates[:10])
        raise ConcordError(f"{source}: {what} could be any of {listed}. Choose one: {flag} {quoted(candidates[0])}")
    console.print(f"{source}: {what} could be any of these:", markup=False)
    for number, candidate in enumerate(candidates, start=1):
        console.print(f"  {number}  {printable(candidate)}", markup=False)
    answers = [str(number) for number in range(1, len(candidates) + 1)]
    number = IntPrompt.ask(f"Which one is {what}?", console=console, choices=answers, show_choices=False)
    return candidates[number - 1]


def text(question: str, default: str) -> str:
    """A line of text; the default without a terminal."""
    return Prompt.ask(question, console=console, default=default).strip() if on_terminal() else default


def confirm(question: str) -> bool:
    """Whether a person agrees; False without a terminal."""
    return on_terminal() and Confirm.ask(question, console=console, default=False)
