"""The versions of the libraries that can change what a step writes."""

import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from components.shared.io.atomic import write_json

LIBRARIES = ("torch", "transformers", "trl", "peft", "numpy", "Pillow")
FILE = "libraries.json"  # in a step's output: the versions it was computed with


def installed() -> dict[str, str]:
    """Returns the installed version of each of LIBRARIES: name -> version, `none` if it is not installed.

    The build (`+cpu`, `+cu130`) is left out, so that a laptop and a cluster have the same versions. No library is
    imported.
    """
    return {name: _version(name) for name in LIBRARIES}


def record(out: Path, libraries: Mapping[str, str]) -> None:
    """Writes the versions to the step's output, because dvc.lock cannot hold them."""
    write_json(out / FILE, libraries)


def recorded(out: Path) -> dict[str, str]:
    """Returns the versions that an output was computed with; empty if it does not say, as older ones."""
    try:
        content = json.loads((out / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Describes the libraries whose versions differ: `trl 1.15.0, now 1.16.0`; empty if all are equal."""
    return ", ".join(
        f"{name} {before.get(name, 'unknown')}, now {now[name]}" for name in now if before.get(name) != now[name]
    )


def _version(name: str) -> str:
    try:
        return version(name).partition("+")[0]
    except PackageNotFoundError:
        return "none"
