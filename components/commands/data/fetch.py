"""Fetches the release from the Hugging Face hub, at the commit in the settings.

`python -m components data ensure` calls this if ingest.path does not exist.
"""

import hashlib
import os
import shutil
from pathlib import Path

from components.console import console
from components.errors import ConcordError
from components.settings import Release
from components.shared.io.atomic import flush_tree
from components.shared.io.disk_full import disk_full_errors
from components.shared.io.locks import output_lock
from components.shared.io.progress import with_progress
from components.shared.io.text import reason_of
from components.shared.io.transient import concord_error


def fetch(release: Release, out: Path, endpoint: str | None = None) -> None:
    """Downloads the subset, or the whole data set, to `out`; resumes after a kill.

    Every file is compared with the hash that the hub lists for it. `out` is created by a rename when all files are
    complete. Credentials, if the data set needs any, come from the environment (HF_TOKEN).

    Args:
        release: its `hub` must be set.
        out: must not exist yet.
        endpoint: URL of the hub; None: HF_ENDPOINT from the environment, or the public hub.

    Raises:
        ConcordError: the download fails, or a file does not have the hash that the hub lists.
    """
    from huggingface_hub import HfApi  # importing it takes half a second
    from huggingface_hub.hf_api import RepoFile

    hub = release.hub
    assert hub is not None  # the caller checks it
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
            for entry in with_progress(files, "checking", len(files)):
                expected = entry.lfs.sha256 if entry.lfs else entry.blob_id
                _check(fetched / entry.path, expected, is_lfs=bool(entry.lfs), name=name)
            shutil.rmtree(fetched / ".cache", ignore_errors=True)  # download metadata of the library
            flush_tree(fetched)
            os.replace(fetched, out)
    except ConcordError:
        raise
    except Exception as error:  # the library, its HTTP client and the system have no common class of errors
        raise concord_error(
            f"{name}: could not be fetched: {reason_of(error)}\nCheck ingest.release.hub (id, revision) and the "
            f"network, and run again: files that are complete are kept. Or put the files in {out} yourself.",
            error,
        ) from None


def _check(path: Path, expected: str, is_lfs: bool, name: str) -> None:
    """Compares a file with its hash: SHA-256 for large files, git's blob hash for others; removes it if it differs."""
    digest = hashlib.sha256() if is_lfs else hashlib.sha1(usedforsecurity=False)
    if not is_lfs:
        digest.update(f"blob {path.stat().st_size}\0".encode())
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    if digest.hexdigest() != expected:
        path.unlink()
        raise ConcordError(
            f"{name}: {path.name} does not have the hash that the hub lists. The file was removed: run again."
        )
