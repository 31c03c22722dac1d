"""The raw input in data/: there, and the very version that data.dvc names.

`dvc repro` would take changed data for a new version and write its hash into data.dvc; so the look comes before it.
"""

import subprocess
import sys
from pathlib import Path

import yaml

from components.commands.data.make import GaugeTable, make
from components.console import console
from components.errors import ConcordError
from components.settings import load_settings
from components.shared.s3.address import is_s3, parse_s3
from components.shared.tracking.hashes import dvc_hash


def ensure(pointer: Path = Path("data.dvc")) -> None:
    """Pulls or makes the raw input where it is missing, then compares its hash with the pointer's.

    Where params.yaml, beside the pointer, names a bucket as ingest.path, its objects are fetched into the cache: what
    is wrong there is then told before DVC asks it for its version. A release that is pinned to a commit of a hub is
    fetched from there. Another folder than the pointer's is none of its business.

    Args:
        pointer: DVC's file beside the folder that it stands for.

    Raises:
        ConcordError: the pointer is missing or no single folder's, or the hash differs; nothing is changed then. Or the
            bucket cannot be read.
    """
    root = pointer.parent
    ingest = load_settings(root / "params.yaml").ingest
    if is_s3(ingest.path):
        from components.shared.s3.local_copy import local_copy

        with local_copy(parse_s3(ingest.path)):
            return
    if ingest.release and ingest.release.hub and not (root / ingest.path).exists():
        from components.commands.data.fetch import fetch

        fetch(ingest.release, root / ingest.path)
    path, md5 = _pointed_at(pointer)
    data = root / path
    if (root / ingest.path).resolve() != data.resolve():
        return
    made = _bring(pointer, data, ingest.source)
    found = dvc_hash(data)
    if found != md5:
        remedy = (
            f"It was made anew just now, so the code that draws it has changed since {pointer} was written"
            if made
            else f"To get that version back, move {data} away and run make data"
        )
        raise ConcordError(
            f"{data}: its hash is {found}, but {pointer} says {md5}: this is not the version that the experiment is "
            f"about. {remedy}. To make it the new version: dvc add {data}, and commit {pointer}."
        )


def _bring(pointer: Path, data: Path, source: str) -> bool:
    """Pulls or makes what is missing. True where it was made anew."""
    # A pull that was killed leaves part of the files, which would look like changed data.
    unfinished = pointer.parent / ".dvc" / "tmp" / "pull-unfinished"
    if data.exists() and not unfinished.exists():
        return False
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    unfinished.touch()
    made = not _pull(pointer)
    if made and source != "gauges":
        raise ConcordError(
            f"{data}: missing, and no DVC remote gave it. Put the files of {pointer} there, or name a remote that "
            "holds them: dvc remote add --default NAME URL"
        )
    if made:
        make(GaugeTable(), data)
    unfinished.unlink()
    return made


def _pointed_at(pointer: Path) -> tuple[str, str]:
    """Path and md5 of the one output of a .dvc file."""
    try:
        content = yaml.safe_load(pointer.read_text(encoding="utf-8"))
        (out,) = content["outs"]
        return out["path"], out["md5"]
    except FileNotFoundError:
        raise ConcordError(
            f"{pointer}: missing, so nobody can say which data is right: git checkout {pointer}"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise ConcordError(f"{pointer}: not a .dvc file of one output ({error!r}): git checkout {pointer}") from None


def _pull(pointer: Path) -> bool:
    """Whether the data came from a DVC remote; False where none is configured or it does not give it."""
    dvc = [sys.executable, "-m", "dvc"]
    remotes = subprocess.run(
        [*dvc, "remote", "list"],
        cwd=pointer.parent,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    if remotes.returncode or not remotes.stdout.strip():
        return False
    console.print(f"pulling {pointer} from the DVC remote")
    pull = subprocess.run(
        [*dvc, "pull", "--force", pointer.name], cwd=pointer.parent, stdin=subprocess.DEVNULL, check=False
    )
    if pull.returncode:
        console.print("[yellow]warning[/] the remote did not give it; making it anew, and comparing hashes then")
    return pull.returncode == 0
