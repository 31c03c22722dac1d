"""What `check` found out about one thing that a run needs."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """A line of the table.

    Attributes:
        what: the thing: "secret concord-s3".
        state: unknown: it cannot be found out from here.
        text: what it is; of an error what is wrong, and the remedy. Without secrets.
    """

    what: str
    state: Literal["ok", "error", "unknown"]
    text: str
