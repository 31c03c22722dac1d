"""Tar shards for tests: in the release's format, and malformed ones."""

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

Mode = Literal["w", "w:gz"]  # plain, gzipped


def pack(path: Path, members: Sequence[tuple[str, bytes]] | Mapping[str, bytes], mode: Mode = "w") -> Path:
    """Writes a tar archive of files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, data in members.items() if isinstance(members, Mapping) else members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def pack_special(path: Path, name: str, **fields: Any) -> Path:
    """Writes a tar archive with one member that has the given header fields."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo(name)
        for field, value in fields.items():
            setattr(info, field, value)
        tar.addfile(info)
    return path


def sample(key: str, image: bytes, solution: object, problem: str = "<image>How old?") -> list[tuple[str, bytes]]:
    """One sample of a WebDataset shard: an image and its annotation."""
    return [(f"{key}.jpg", image), (f"{key}.json", json.dumps({"problem": problem, "solution": solution}).encode())]


def conversation(id: int, image: str, answer: str, question: str = "How old?") -> dict[str, Any]:
    """The annotation of a training row."""
    turns = [{"from": "human", "value": f"<image>{question}"}, {"from": "gpt", "value": answer}]
    return {"id": id, "image": image, "conversations": turns}
