"""The memory limit of this container, and how many of its processes the kernel has ended for it."""

import re
from contextlib import suppress
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
EVENTS = ("memory.events", "memory.oom_control")  # of cgroup 2 and 1
LIMITS = ("memory.max", "memory.limit_in_bytes")
UNLIMITED = 1 << 60  # bytes; cgroup 1 has a number near 2**63 for none


def memory_cgroup(membership: Path = Path("/proc/self/cgroup"), root: Path = ROOT) -> Path | None:
    """The folder of this process's memory cgroup; None where the kernel shows none.

    A container sees its own cgroup as the root, also where `membership` names the host's path.
    """
    for line in membership.read_text(encoding="utf-8").splitlines() if membership.exists() else []:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            for folder in (root / controllers / path.strip("/"), root / controllers):
                if any((folder / name).is_file() for name in EVENTS):
                    return folder
    return None


def processes_killed(cgroup: Path | None) -> int:
    """How many processes of the cgroup the kernel has ended because memory ran out; 0 where this is unknown."""
    found = re.search(r"^oom_kill (\d+)$", _read(cgroup, EVENTS), re.MULTILINE)
    return int(found[1]) if found else 0


def limit_bytes(cgroup: Path | None) -> int | None:
    """The limit of the cgroup; None where there is none (`max`) or it is unknown."""
    text = _read(cgroup, LIMITS).strip()
    return int(text) if text.isdigit() and int(text) < UNLIMITED else None


def _read(cgroup: Path | None, names: tuple[str, str]) -> str:
    """The content of the first of these files that the cgroup has; empty without any."""
    for file in (cgroup / name for name in names) if cgroup else ():
        with suppress(OSError):
            return file.read_text(encoding="ascii")
    return ""
