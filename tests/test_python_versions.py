"""The lock installs on every Python that pyproject.toml names, and `make` finds one of them."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
VERSIONS = ("3.11", "3.12", "3.13")
LOCK = [
    Requirement(line)
    for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]
# torch's CUDA build, which the lock does not pin, and pip's own, which an environment may go without.
NOT_LOCKED = re.compile(r"nvidia-.*|cuda-.*|triton|pip|setuptools")


def supported() -> SpecifierSet:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return SpecifierSet(project["requires-python"])


@pytest.mark.parametrize("version", VERSIONS)
def test_no_locked_package_excludes_a_python(version: str) -> None:
    """By the metadata of what is installed, which test_what_is_installed_is_the_lock holds against the lock."""
    assert supported().contains(f"{version}.0")
    excluding = []
    for requirement in LOCK:
        needed = importlib.metadata.metadata(requirement.name).get("Requires-Python")
        if needed and not SpecifierSet(needed).contains(f"{version}.1"):
            excluding.append(f"{requirement}: {needed}")
    assert excluding == []


@pytest.mark.parametrize("version", VERSIONS)
def test_the_lock_holds_all_that_its_packages_need(version: str) -> None:
    """Also what they need on that Python alone: `make` installs the lock without its packages' needs."""
    locked = {canonicalize_name(requirement.name): str(requirement.specifier)[2:] for requirement in LOCK}
    environment = {**default_environment(), "python_version": version, "python_full_version": f"{version}.1"}
    missing = []
    for name in locked:
        for text in importlib.metadata.requires(name) or []:
            requirement = Requirement(text)
            if requirement.marker and not requirement.marker.evaluate({**environment, "extra": ""}):
                continue
            found = locked.get(canonicalize_name(requirement.name))
            if found is None and not NOT_LOCKED.fullmatch(canonicalize_name(requirement.name)):
                missing.append(f"{name} needs {text}")
            elif found is not None and not requirement.specifier.contains(found, prereleases=True):
                missing.append(f"{name} needs {text}, and the lock has {found}")
    assert missing == []


def test_what_is_installed_is_the_lock() -> None:
    wrong = [
        f"{requirement}, installed: {found}"
        for requirement in LOCK
        if not requirement.specifier.contains(found := importlib.metadata.version(requirement.name).partition("+")[0])
    ]
    assert wrong == []


def chosen(tmp_path: Path, *names: str) -> str:
    """The interpreter that `make setup` takes where PATH has these and the tools that a shell needs."""
    for name in names:
        version = name.removeprefix("python")
        # As pyenv's shims do: a command may be there and name a Python that is not.
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


# Stands in for the interpreter of another version: `make` asks it for sys.version_info.
FAKED = "import sys; sys.exit(not (3, 11) <= tuple(map(int, '{}'.split('.'))) <= (3, 13))"


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (("python3.11",), "python3.11"),
        (("python3.11", "python3.12"), "python3.12"),
        (("python3.11", "python3.12", "python3.13"), "python3.13"),
        (("python3.11", "python3.13-broken"), "python3.11"),
        (("python3.10", "python3.14"), ""),
        ((), ""),
    ],
)
def test_make_takes_the_newest_python_that_works(names: tuple[str, ...], found: str, tmp_path: Path) -> None:
    assert chosen(tmp_path, *names) == found
