"""Date, machine and package versions for results files. No step writes them into its output."""

import datetime
import importlib.metadata
import os
import platform
from collections.abc import Sequence
from typing import Any

VERSIONS = ("torch", "transformers", "trl", "peft")


def machine_facts(versions: Sequence[str] = VERSIONS) -> dict[str, Any]:
    """Returns `{"date", "machine", "python", "versions"}` for this process.

    Args:
        versions: packages whose versions are included.
    """
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in versions},
    }


def facts_line(facts: dict[str, Any]) -> str:
    """Formats `machine_facts` as one line."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return f"{facts['date']}; {facts['machine']}; Python {facts['python']}, {versions}."
