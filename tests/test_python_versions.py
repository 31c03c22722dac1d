"""The lock can be installed on every Python that pyproject.toml supports, and `make` finds such a Python."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tests.support.locks import DEV, IMAGE, ROOT, needed_here

VERSIONS = ("3.11", "3.12", "3.13")
LOCK = needed_here(IMAGE, DEV)
# Packages of torch's CUDA build, which may be absent here, and pip's own, which an environment may lack.
NOT_LOCKED = re.compile(r"nvidia-.*|cuda-.*|triton|pip|setuptools")


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = {canonicalize_name(each.name): each.extras for each in map(Requirement, PROJECT["dependencies"])}


def supported() -> SpecifierSet:
    return SpecifierSet(PROJECT["requires-python"])


@pytest.mark.parametrize("version", VERSIONS)
def test_no_locked_package_excludes_a_supported_python(version: str) -> None:
    """Reads the installed packages' metadata; test_installed_packages_match_the_lock compares them with the lock."""
    assert supported().contains(f"{version}.0")
    excluding = []
    for pin in LOCK:
        for needed in importlib.metadata.metadata(pin.requirement.name).get_all("Requires-Python", []):
            if not SpecifierSet(needed).contains(f"{version}.1"):
                excluding.append(f"{pin.requirement}: {needed}")
    assert excluding == []


@pytest.mark.parametrize("version", VERSIONS)
def test_lock_has_all_dependencies_of_its_packages(version: str) -> None:
    """Includes those of only some Python versions, and of the extras in pyproject.toml: `make` resolves nothing."""
    locked = {canonicalize_name(pin.requirement.name): pin.version for pin in LOCK}
    changed = {"python_version": version, "python_full_version": f"{version}.1"}
    missing = []
    for name in locked:
        for text in importlib.metadata.requires(name) or []:
            requirement = Requirement(text)
            extras = ("", *EXTRAS.get(name, ()))
            if (marker := requirement.marker) and not any(marker.evaluate({**changed, "extra": e}) for e in extras):
                continue
            version_in_lock = locked.get(canonicalize_name(requirement.name))
            if version_in_lock is None and not NOT_LOCKED.fullmatch(canonicalize_name(requirement.name)):
                missing.append(f"{name} needs {text}")
            elif version_in_lock is not None and not requirement.specifier.contains(version_in_lock, prereleases=True):
                missing.append(f"{name} needs {text}, but the lock has {version_in_lock}")
    assert missing == []


def test_installed_packages_match_the_lock() -> None:
    wrong = [
        f"{pin.requirement}, installed: {installed}"
        for pin in LOCK
        if (installed := importlib.metadata.version(pin.requirement.name).partition("+")[0]) != pin.version
    ]
    assert wrong == []


def chosen(tmp_path: Path, *names: str) -> str:
    """Returns the interpreter that `make setup` chooses if PATH has only these Pythons and some shell tools."""
    for name in names:
        version = name.removeprefix("python")
        # Like pyenv's shims: the command exists, but the Python behind it does not.
        body = "exit 127" if name.endswith("-broken") else f'exec {sys.executable} -c "{FAKED.format(version)}"'
        (tmp_path / name.removesuffix("-broken")).write_text(f'#!/bin/sh\n[ "$1" = -c ] && {body}\n')
        (tmp_path / name.removesuffix("-broken")).chmod(0o755)
    for tool in ("bash", "sh", "cat", "cksum", "cut", "make"):
        (tmp_path / tool).symlink_to(shutil.which(tool) or tool)
    done = subprocess.run(
        ["make", "-n", "setup", f"VENV={tmp_path / 'venv'}"], cwd=ROOT, capture_output=True, text=True, check=True,
        env={"PATH": str(tmp_path)} | {name: value for name, value in os.environ.items() if name == "HOME"},
    )  # fmt: skip
    (venv,) = re.findall(r"'(.*)' -m venv", done.stdout)
    return Path(venv).name if venv else ""


# Fakes an interpreter of another version; `make` asks it for sys.version_info.
FAKED = "import sys; sys.exit(not (3, 11) <= tuple(map(int, '{}'.split('.'))) <= (3, 13))"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("python3.11",), "python3.11"),
        (("python3.11", "python3.12"), "python3.12"),
        (("python3.11", "python3.12", "python3.13"), "python3.13"),
        (("python3.11", "python3.13-broken"), "python3.11"),
        (("python3.10", "python3.14"), ""),
        ((), ""),
    ],
)
def test_make_chooses_the_newest_python_that_works(names: tuple[str, ...], expected: str, tmp_path: Path) -> None:
    assert chosen(tmp_path, *names) == expected
