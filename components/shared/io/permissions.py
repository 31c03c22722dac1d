"""Permissions of files: of those that a step creates in a pod, and the message for a path that it may not use."""

import errno
import os
from pathlib import Path

UMASK = 0o022  # others may read what a step creates, as on a machine, and not change it


def restrict_umask() -> None:
    """Keeps what this process creates from being writable by others; a stricter umask stays.

    Argo sets umask 0 in a step's container, so that everyone who mounts the volume for training state could change it.
    """
    os.umask(os.umask(UMASK) | UMASK)


def denied_message(error: BaseException) -> str | None:
    """What to report of an error that says that a path may not be read or written; None for any other error."""
    if not isinstance(error, OSError) or not isinstance(error.filename, str | bytes):
        return None
    path = os.fsdecode(error.filename)
    if error.errno == errno.EROFS:
        return f"{path}: its file system is read-only. Choose a path on another one."
    if error.errno not in (errno.EACCES, errno.EPERM):
        return None
    found = next(part for part in (Path(path).absolute(), *Path(path).absolute().parents) if os.path.exists(part))
    state = found.stat()
    return (
        f"{path}: user {os.getuid()} (group {os.getgid()}) has no permission: {found} belongs to user {state.st_uid} "
        f"(group {state.st_gid}) and has mode {state.st_mode & 0o7777:o}. Change its owner (chown) or mode (chmod), or "
        "run as a user who has it; for a volume on Kubernetes see pipelines/README.md, step 3."
    )
