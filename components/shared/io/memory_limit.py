"""The memory limit of this container, and how many of its processes the kernel has ended for it."""

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
    for name in EVENTS if cgroup else ():
        try:
            counts = dict(line.split() for line in (cgroup / name).read_text(encoding="ascii").splitlines())
        except (OSError, ValueError):
            continue
        return int(counts.get("oom_kill", 0))
    return 0


def limit_bytes(cgroup: Path | None) -> int | None:
    """The limit of the cgroup; None where there is none or it is unknown."""
    for name in LIMITS if cgroup else ():
        try:
            limit = int((cgroup / name).read_text(encoding="ascii"))
        except (OSError, ValueError):  # `max`: no limit
            continue
        return limit if limit < UNLIMITED else None
    return None
