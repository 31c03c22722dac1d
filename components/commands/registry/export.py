"""`python -m components registry export`: writes a version as a model folder that the Hugging Face hub can show."""

import json
import shutil
from pathlib import Path

from components.errors import ConcordError
from components.register.model_card import FILE, model_card
from components.register.registry import Registry
from components.settings import READER
from components.shared.io.atomic import new_folder, write_json, write_text
from components.shared.model.adapter import ADAPTER
from components.shared.tracking.registered import fetch_version

VALIDATION = "validation.parquet"
SUFFIXES = (".safetensors", ".json", ".jinja", ".txt", ".model")  # of weights, config, processor and tokenizer
BY_PRODUCTS = ("metrics.json",)  # of training; the card has its figures


def export(registry: Registry, which: str, out: Path) -> str:
    """Writes weights, adapter, processor, what the reader needs, and the model card; returns the number of the version.

    Args:
        which: number or alias of the version.
        out: must not exist, or be an empty folder. It is created by a rename when all files are complete.

    Raises:
        ConcordError: `out` has content, or the version does not exist or was not registered by this release.
    """
    out = out.resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConcordError(f"{out}: exists already. Choose another folder with --out, or remove this one.")
    version = registry.version(registry.aliases().get(which, which))
    card = model_card(version)
    if card is None:
        raise ConcordError(
            f"{registry.name} version {version.version}: has no metrics, so no card. Run register again."
        )
    with new_folder(out) as folder:
        download = folder / ".download"  # on the same disk, so that files are moved, not copied
        download.mkdir()
        fetched = fetch_version(registry.name, str(version.version), download)
        assert fetched.folder.is_relative_to(download)  # or the store would lose the files
        for path in sorted(fetched.folder.iterdir()):
            if path.name in (VALIDATION, ADAPTER) or (path.suffix in SUFFIXES and path.name not in BY_PRODUCTS):
                path.rename(folder / path.name)
        shutil.rmtree(download)
        remove_remote_code(folder)
        write_json(folder / READER, fetched.reader.tree())
        write_text(folder / FILE, card)
    return str(version.version)


def remove_remote_code(folder: Path) -> None:
    """Removes the names of Python code from all configs; the register step loaded the model without that code."""
    for path in folder.glob("*config.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("auto_map", None):
            write_json(path, content)
