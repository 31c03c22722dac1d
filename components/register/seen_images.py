"""The images that a version has seen: it trained on those of train, and its checkpoint and balance were chosen on val.

Data grow, and a split may move: an image of today's test set may have been in the training set of the champion. The
version stores the SHA-256 of each image that it has seen, 32 bytes each.
"""

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.register.registry import Registry
from components.shared.rows.rows import read_table
from components.shared.tracking.connection import mlflow_errors, tracking_uri

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

FILE = "seen-images.parquet"  # artifact of the version: one column, sorted, without duplicates
SEEN = "concord.seen_images"  # tag of the version: how many images the file lists
_SPLITS = ("train", "val")
_INGEST = "concord.in.ingest"  # tag of the version: DVC hash of its rows


def store_seen_images(registry: Registry, number: str, ingest: Path) -> None:
    """Stores the hashes of the images of train and val with a version, once."""
    version = registry.version(number)
    if SEEN in version.tags:
        return
    hashes = seen_in(ingest)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, FILE)
        pq.write_table(pa.table({"sha256": hashes}), file, compression="none", use_dictionary=False)
        registry.attach(version, file)
    registry.tag(number, {SEEN: str(len(hashes))})


def seen_by(registry: Registry, number: str, ingest: Path, digest: str) -> pa.Array | None:
    """The hashes of the images that a version has seen, sorted; None if they are unknown.

    A version of an earlier release stored none. Then they come from the rows that it was trained on: these rows, or
    those in DVC's cache on this machine.

    Args:
        ingest: today's rows.
        digest: their DVC hash.

    Raises:
        ConcordError: the registry or its artifact store cannot be reached.
    """
    version = registry.version(number)
    if SEEN in version.tags:
        return _stored(version)
    trained_on = version.tags.get(_INGEST)
    if trained_on == digest:
        return seen_in(ingest)
    return None if trained_on is None else _cached(trained_on)


def hashes_of(digests: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Hexadecimal digests as 32 bytes each."""
    return pa.array([bytes.fromhex(digest) for digest in digests.to_pylist()], pa.binary(32))


def seen_in(ingest: Path) -> pa.Array:
    """The sorted hashes of the images of train and val."""
    parts = [
        hashes_of(chunk)
        for split in _SPLITS
        for chunk in read_table(ingest, split, ["image_sha256"])["image_sha256"].chunks
    ]
    return _sorted(parts)


def _sorted(parts: list[pa.Array]) -> pa.Array:
    hashes = pc.unique(pa.concat_arrays([pa.array([], pa.binary(32)), *parts]))
    return hashes.take(pc.sort_indices(hashes))


def _stored(version: "ModelVersion") -> pa.Array:
    import mlflow

    name = f"{version.name} version {version.version}"
    with tempfile.TemporaryDirectory() as folder, mlflow_errors(f"read {FILE} of {name}"):
        mlflow.set_tracking_uri(tracking_uri())
        uri = f"models:/{version.name}/{version.version}/{FILE}"
        path = mlflow.artifacts.download_artifacts(uri, dst_path=folder)
        return pq.ParquetFile(path).read()["sha256"].combine_chunks()


def _cached(digest: str) -> pa.Array | None:
    """The hashes from the rows with this DVC hash, if DVC's cache holds them."""
    from dvc.exceptions import NotDvcRepoError
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            cache = Path(repo.cache.local.path)
        listing = json.loads(cache.joinpath(digest[:2], digest[2:]).read_text(encoding="utf-8"))
    except (NotDvcRepoError, FileNotFoundError):
        return None
    parts = []
    for entry in listing:
        if entry["relpath"].startswith(tuple(f"{split}-" for split in _SPLITS)):
            shard = cache / entry["md5"][:2] / entry["md5"][2:]
            if not shard.exists():
                return None
            parts.append(hashes_of(pq.read_table(shard, columns=["image_sha256"])["image_sha256"]))
    return _sorted(parts)
