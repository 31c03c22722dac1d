"""Text from files and addresses as messages show it: quoted, short, and without control characters."""


def shown(value: str) -> str:
    """A value from a file: quoted, at most 60 characters, control characters escaped."""
    return repr(value if len(value) <= 60 else value[:59] + "…")


def printable(text: str) -> str:
    """A message with control characters replaced: names and values from files may hold any."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)
