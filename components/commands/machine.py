"""What a figure was made with: machine, date and versions, for results files. No step's output holds it."""

import datetime
import importlib.metadata
import os
import platform
from collections.abc import Sequence
from typing import Any

VERSIONS = ("torch", "transformers", "trl", "peft")


def machine_facts(versions: Sequence[str] = VERSIONS) -> dict[str, Any]:
    """`{"date", "machine", "python", "versions"}` of this process.

    Args:
        versions: packages to name.
    """
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in versions},
    }


def facts_line(where: dict[str, Any]) -> str:
    """One line of it."""
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    return f"{where['date']}; {where['machine']}; Python {where['python']}, {versions}."
