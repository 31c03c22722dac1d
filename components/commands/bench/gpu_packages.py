"""Fills a folder with the packages that a GPU machine without a package index lacks.

The machine is taken to have torch, transformers, accelerate, peft, pyarrow, pandas and what these need. The folder goes
there with the repository, and into PYTHONPATH.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from components.errors import ConcordError
from components.shared.io.atomic import new_folder

PACKAGES = (
    "trl", "datasets", "dill", "multiprocess", "pydantic", "pydantic-core", "annotated-types", "typing-inspection",
    "xxhash",
)  # fmt: skip
LOCK = Path(__file__).parents[3] / "requirements.lock"
LIMIT = 60e6  # bytes


def pack(folder: Path, python: str = "3.12") -> int:
    """Installs PACKAGES, in the versions of the lock, for Linux on x86-64; replaces an existing folder.

    Returns:
        Size in bytes.

    Raises:
        ConcordError: pip failed, or the folder is larger than LIMIT.
    """
    with new_folder(folder) as partial, tempfile.NamedTemporaryFile("w", encoding="utf-8") as pins:
        pins.write(pinned(PACKAGES))
        pins.flush()
        command = [
            sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--no-deps", "--target", str(partial),
            "--only-binary", ":all:", "--python-version", python, "--platform", "manylinux2014_x86_64",
            "--require-hashes", "--requirement", pins.name,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ConcordError(f"{folder}: pip could not install its packages:\n{done.stderr.strip()}")
        size = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file())
        if size > LIMIT:
            raise ConcordError(
                f"{folder}: {size / 1e6:.0f} MB are more than {LIMIT / 1e6:.0f} MB. Pack fewer packages."
            )
    return size


def pinned(packages: tuple[str, ...]) -> str:
    """Returns the pins of these packages, with their hashes, as text of a requirements file.

    Raises:
        ConcordError: the lock lacks one.
    """
    pins = re.findall(r"^((\S+)==.*(?:\n .*)*\n)", LOCK.read_text("utf-8"), re.MULTILINE)
    by_name = {name: pin for pin, name in pins}
    missing = [name for name in packages if name not in by_name]
    if missing:
        raise ConcordError(f"{LOCK.name}: lacks {', '.join(missing)}, which bench gpu --pack installs.")
    return "".join(by_name[name] for name in packages)
