"""Which files a model may consist of: safetensors, JSON and the tokenizer's text; nothing that can run code."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file

from components.errors import ConcordError

REMEDY = "Give a hub id with its revision, or a folder with a model's safetensors weights and its processor."
PICKLES = (".bin", ".ckpt", ".dill", ".joblib", ".pickle", ".pkl", ".pt", ".pth")  # reading one can run code
CODE = (".py", ".pyc", ".pyd", ".so")
INDEX = ".index.json"  # of weights in several files
# Where transformers looks for the names of code. In a folder, every JSON file with `config` in its name is read.
CONFIGS = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
)
# A file in a store that names files by their content, as a DVC cache does; a link to it reveals no other file.
_BY_CONTENT = re.compile(r".*/files/md5/[0-9a-f]{2}/[0-9a-f]{30}", re.DOTALL)


def check_model_files(source: str | Path, revision: str | None = None) -> None:
    """Checks that a model holds weights and settings alone, before any of it is loaded.

    Of a hub's model, transformers fetches safetensors and JSON alone, so only its configs are checked. What is missing
    or damaged is left to the loader's message.

    Args:
        source: a local model folder with its sub-folders, or a hub id.
        revision: the hub commit.

    Raises:
        ConcordError: there is a pickle or Python code, a config that names code (`auto_map`), an index that names
            weights elsewhere, or a link out of the folder.
    """
    folder = Path(source)
    if not folder.is_dir():
        for name in CONFIGS:
            if isinstance(source, str) and (path := _fetched(source, name, revision)):
                _check_config(f"{source}: {name}", path)
        return
    for path in _entries(folder):
        label = f"{folder}: {path.relative_to(folder)}"
        if path.is_symlink() and not _is_inside(path.resolve(), folder):
            raise _refused(
                label, "a link that leaves the folder", "Copy its target into the folder, or remove the link"
            )
        if not path.is_file():
            continue
        if path.suffix.lower() in PICKLES:
            again = "Remove it; weights without a safetensors file must be saved again with save_pretrained"
            raise _refused(label, "a pickle, which can run code when it is read", again)
        if path.suffix.lower() in CODE:
            raise _refused(label, "Python code, which no model here needs", "Remove it")
        if path.name.endswith(INDEX):
            _check_index(label, path)
        elif path.suffix.lower() == ".json" and "config" in path.name.lower():
            _check_config(label, path)


def _entries(folder: Path) -> Iterator[Path]:
    """Files, links and folders at all depths, in the order of their names; links to folders are not followed."""
    for root, folders, files in os.walk(folder):
        folders.sort()
        yield from (Path(root, name) for name in sorted([*folders, *files]))


def _is_inside(target: Path, folder: Path) -> bool:
    """Whether a link's target lies in the folder; or in the store to which a hub's or DVC's cache links it."""
    home = folder.resolve()
    blobs = home.parent.parent / "blobs"  # beside snapshots/COMMIT
    return (
        target.is_relative_to(home)
        or (home.parent.name == "snapshots" and target.parent == blobs)
        or bool(_BY_CONTENT.fullmatch(target.as_posix()))
    )


def _check_config(label: str, path: Path) -> None:
    if _names_code(_json(path)):
        raise _refused(label, "auto_map names Python code of the model's own, which is never run", "Remove the key")


def _names_code(content: Any) -> bool:
    """Whether `auto_map` is set at any depth, as in the config of a part."""
    if isinstance(content, dict):
        return bool(content.get("auto_map")) or any(_names_code(value) for value in content.values())
    return isinstance(content, list) and any(_names_code(value) for value in content)


def _check_index(label: str, path: Path) -> None:
    content = _json(path)
    shards = content.get("weight_map") if isinstance(content, dict) else None
    for shard in sorted({str(name) for name in shards.values()}) if isinstance(shards, dict) else ():
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            problem = f"names {shard!r}, which is no safetensors file in the same folder"
            raise _refused(label, problem, "Save the model again with save_pretrained, or remove the index")


def _json(path: Path) -> Any:
    """The content of a JSON file; None if it is damaged, which the loader reports."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _fetched(name: str, file: str, revision: str | None) -> Path | None:
    """A file of the hub, in its cache; None if there is none, or the hub cannot be reached."""
    try:
        found = cached_file(name, file, revision=revision, _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError):
        return None
    return Path(found) if found else None


def _refused(label: str, problem: str, remedy: str) -> ConcordError:
    return ConcordError(f"{label}: {problem}. {remedy}. {REMEDY}")
