"""The release from the Hugging Face hub, at the commit that the settings pin: what `python -m components data ensure`
brings where ingest.path is missing."""

import hashlib
import os
import re
import shutil
from pathlib import Path

from components.console import console
from components.errors import ConcordError
from components.settings import Release
from components.shared.io.disk_full import disk_full_errors
from components.shared.io.locks import output_lock
from components.shared.io.progress import counted


def fetch(release: Release, out: Path, endpoint: str | None = None) -> None:
    """Downloads the subset, or all, to `out`. What was downloaded before a kill is not downloaded again.

    Every file is held against the hash that the hub lists for it; `out` appears when all is there. Credentials, where
    the data set needs any, are the environment's (HF_TOKEN).

    Args:
        release: with its hub.
        out: does not exist yet.
        endpoint: of the hub; None: the environment's HF_ENDPOINT, or the public one.

    Raises:
        ConcordError: the hub does not give it, or a file is not what the hub lists.
    """
    from huggingface_hub import HfApi  # half a second
    from huggingface_hub.hf_api import RepoFile

    hub = release.hub
    assert hub is not None  # the caller sees to it
    name = f"{hub.id} at {hub.revision[:12]}"
    console.print(f"{out}: fetching {name}{f', {release.subset}' if release.subset else ''}", markup=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    fetched = out.parent / f".{out.name}.fetched"
    patterns = f"{release.subset}/*" if release.subset else None
    api, kind = HfApi(endpoint=endpoint), "dataset"
    try:
        with output_lock(fetched), disk_full_errors(out):
            api.snapshot_download(
                hub.id, repo_type=kind, revision=hub.revision, local_dir=fetched, allow_patterns=patterns
            )
            tree = api.list_repo_tree(hub.id, release.subset, recursive=True, repo_type=kind, revision=hub.revision)
            files = [entry for entry in tree if isinstance(entry, RepoFile)]
            for entry in counted(files, "checking", len(files)):
                expected = entry.lfs.sha256 if entry.lfs else entry.blob_id
                _check(fetched / entry.path, expected, is_lfs=bool(entry.lfs), name=name)
            shutil.rmtree(fetched / ".cache", ignore_errors=True)  # the library's own notes
            os.replace(fetched, out)
    except ConcordError:
        raise
    except Exception as error:  # of the library, of its HTTP client, of the system: each of a family of its own
        reason = re.sub(r"\?[^\s'\"]*", "", (str(error).strip() or type(error).__name__).splitlines()[0])
        raise ConcordError(
            f"{name}: could not be fetched: {reason}\nCheck ingest.release.hub (id, revision) and the network, and run "
            f"again: what is there already stays. Or put the files in {out} yourself."
        ) from None


def _check(path: Path, expected: str, is_lfs: bool, name: str) -> None:
    """Holds a file against its hash: of large files the SHA-256, of others git's own."""
    digest = hashlib.sha256() if is_lfs else hashlib.sha1(usedforsecurity=False)
    if not is_lfs:
        digest.update(f"blob {path.stat().st_size}\0".encode())
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    if digest.hexdigest() != expected:
        path.unlink()
        raise ConcordError(f"{name}: {path.name} is not what the hub lists, by its hash. It was removed: run again.")
