"""Formats text from files and addresses for messages: quoted, shortened, without control characters."""

import re

from components.shared.io.secrets import masked

_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # spreadsheets run a cell that begins so, quoted or not


def quoted(value: str) -> str:
    """The value in quotes, cut to 60 characters, with control characters escaped."""
    return repr(value if len(value) <= 60 else value[:59] + "…")


def printable(text: str) -> str:
    """The text with control characters replaced: names and values from files may contain any."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)


def cell(text: str) -> str:
    """The text as a cell of a CSV file: an apostrophe before one that a spreadsheet would run makes it text there."""
    return f"'{text}" if text.startswith(_FORMULA) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def reason_of(error: Exception) -> str:
    """The first line of an error's message, or its class, without secrets and without the queries of URLs."""
    return re.sub(r"\?[^\s'\"]*", "", masked((str(error).strip() or type(error).__name__).splitlines()[0]))
