"""Tar shards for tests: as the release has them, and as nobody should."""

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def pack(path: Path, members: Sequence[tuple[str, bytes]] | Mapping[str, bytes], mode: str = "w") -> Path:
    """A tar archive of files, `w` plain or `w:gz`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, data in members.items() if isinstance(members, Mapping) else members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def special(path: Path, name: str, **fields: Any) -> Path:
    """A tar archive of one member with header fields of any kind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo(name)
        for field, value in fields.items():
            setattr(info, field, value)
        tar.addfile(info)
    return path


def sample(key: str, image: bytes, solution: object, problem: str = "<image>How old?") -> list[tuple[str, bytes]]:
    """One sample of a WebDataset shard: the image and, beside it, its annotation."""
    return [(f"{key}.jpg", image), (f"{key}.json", json.dumps({"problem": problem, "solution": solution}).encode())]


def conversation(id: int, image: str, answer: str, question: str = "How old?") -> dict[str, Any]:
    """A training row."""
    turns = [{"from": "human", "value": f"<image>{question}"}, {"from": "gpt", "value": answer}]
    return {"id": id, "image": image, "conversations": turns}
