"""Ensures that the raw input in data/ exists and is the version that data.dvc names.

This check runs before `dvc repro`, which would record changed data as a new version in data.dvc.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from components.commands.data.make import GaugeTable, make
from components.console import console
from components.errors import ConcordError
from components.s3_address import is_s3, parse_s3
from components.settings import load_settings
from components.shared.io.atomic import flush_tree
from components.shared.tracking.hashes import dvc_hash


def ensure(pointer: Path = Path("data.dvc")) -> None:
    """Fetches or generates the raw input if it is missing, and compares its hash with that in data.dvc.

    It reads the section ingest of params.yaml beside data.dvc. If ingest.path is in a bucket, its objects are fetched
    into the cache, so that errors appear before DVC reads the bucket's version. If ingest.release.hub is set and
    ingest.path does not exist, the release is fetched from the hub. A folder other than that of data.dvc is left alone;
    it only has to exist.

    Args:
        pointer: the .dvc file of the raw input.

    Raises:
        ConcordError: the pointer is missing or does not have exactly one output, the hash differs (nothing is changed
            then), or the data cannot be fetched.
    """
    root = pointer.parent
    _work_without_git(root)
    ingest = load_settings(root / "params.yaml").ingest
    if is_s3(ingest.path):
        from components.shared.s3.local_copy import local_copy

        with local_copy(parse_s3(ingest.path)):
            return
    if ingest.release and ingest.release.hub and not (root / ingest.path).exists():
        from components.commands.data.fetch import fetch

        fetch(ingest.release, root / ingest.path)
    own = root / ingest.path
    if own.resolve() != pointer.with_suffix("").resolve():
        if not own.exists():
            raise ConcordError(f"{own}: missing, and params.yaml reads it (ingest.path). Correct the path.")
        return
    path, md5 = _read_pointer(pointer)
    data = root / path
    if own.resolve() != data.resolve():
        return
    generated = _pull_or_generate(pointer, data, ingest.source)
    actual = dvc_hash(data)
    if actual != md5:
        remedy = (
            f"It was generated just now, so the code that generates it has changed since {pointer} was written"
            if generated
            else f"To get that version back, move {data} away and run make data"
        )
        raise ConcordError(
            f"{data}: its hash is {actual}, but {pointer} says {md5}: this is not the version that the experiment "
            f"uses. {remedy}. To make it the new version: dvc add {data}, and commit {pointer}."
        )


def _work_without_git(root: Path) -> None:
    """Tells DVC, in .dvc/config.local, that the folder is no git repository, if it is none: an unpacked archive."""
    root = root.absolute()
    if (root / ".dvc").is_dir() and not any((folder / ".git").exists() for folder in (root, *root.parents)):
        config = root / ".dvc" / "config.local"
        if not config.exists() or "no_scm" not in config.read_text(encoding="utf-8"):
            _dvc(root / "data.dvc", "config", "--local", "core.no_scm", "true")
            console.print(
                f"{root}: not a git repository, so runs name no commit; told DVC so in {config}", markup=False
            )


def _pull_or_generate(pointer: Path, data: Path, source: str) -> bool:
    """Pulls missing data from the DVC remote, or else generates it; returns whether it was generated.

    Data that exists is never touched, whatever it contains.
    """
    if data.exists() or _pull(pointer, data):
        return False
    if source != "gauges":
        raise ConcordError(
            f"{data}: missing, and no DVC remote has it. Put the files of {pointer} there, or add a remote that has "
            "them: dvc remote add --default NAME URL. For data of your own: python -m components init DATA"
        )
    console.print(f"generating {data}")
    make(GaugeTable(), data)
    return True


def _read_pointer(pointer: Path) -> tuple[str, str]:
    """Path and md5 of the single output of a .dvc file."""
    try:
        content = yaml.safe_load(pointer.read_text(encoding="utf-8"))
        (out,) = content["outs"]
        return out["path"], out["md5"]
    except FileNotFoundError:
        raise ConcordError(
            f"{pointer}: missing, so the data cannot be checked. To restore it: git checkout {pointer}"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise ConcordError(
            f"{pointer}: not a .dvc file with one output ({error!r}). To restore it: git checkout {pointer}"
        ) from None


def _pull(pointer: Path, data: Path) -> bool:
    """Pulls the data from the DVC remote; returns False if there is no remote or it does not have the data.

    Fetches into DVC's cache, copies to a sibling of the folder, and renames that. So a killed pull leaves no folder
    that looks like changed data, and the next pull cannot overwrite files that somebody has put there since.
    """
    if not _dvc(pointer, "remote", "list").stdout.strip():
        return False
    console.print(f"pulling {pointer} from the DVC remote")
    partial = data.with_name(f".{data.name}.pulled")
    if partial.exists():
        shutil.rmtree(partial)
    name, out = data.relative_to(pointer.parent).as_posix(), os.path.relpath(partial, pointer.parent)
    for words in (["fetch", pointer.name], ["get", ".", name, "--out", out]):
        if _dvc(pointer, *words, shown=True).returncode:
            console.print(f"[yellow]warning[/] {pointer}: the pull failed")
            return False
    flush_tree(partial)
    os.rename(partial, data)  # fails if a folder with files has appeared there
    return True


def _dvc(pointer: Path, *words: str, shown: bool = False) -> "subprocess.CompletedProcess[str]":
    """Runs DVC in the pointer's repository."""
    return subprocess.run(
        [sys.executable, "-m", "dvc", *words],
        cwd=pointer.parent,
        capture_output=not shown,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
