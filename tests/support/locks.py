"""Reads the locks, which .ci/lock writes."""

import re
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
IMAGE, DEV = "requirements.lock", "requirements-dev.lock"
CPU, CUDA = "requirements-cpu.lock", "requirements-cuda.lock"
DEMO = "components/commands/demo/requirements-demo.txt"
LOCKS = (IMAGE, DEV, CPU, CUDA, DEMO)


@dataclass(frozen=True)
class Pin:
    """A locked package, and what may be installed for it."""

    requirement: Requirement
    hashes: tuple[str, ...]

    @property
    def version(self) -> str:
        """The only version that the lock allows."""
        (specifier,) = self.requirement.specifier
        assert specifier.operator == "=="
        return specifier.version


def pins(lock: str) -> list[Pin]:
    """Returns the packages of a lock, also those for other systems than this one."""
    text = (ROOT / lock).read_text(encoding="utf-8")
    entries = re.findall(r"^([^#\s].*?)(?: \\)?\n((?: +--hash=\S+(?: \\)?\n)*)", text, re.MULTILINE)
    return [Pin(Requirement(entry), tuple(re.findall(r"--hash=(\S+)", hashes))) for entry, hashes in entries]


def needed_here(*locks: str) -> list[Pin]:
    """Returns the packages of these locks that belong on this system."""
    found = [pin for lock in locks for pin in pins(lock)]
    return [pin for pin in found if pin.requirement.marker is None or pin.requirement.marker.evaluate()]
