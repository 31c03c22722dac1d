"""Loads the reader that `--model` names: a model folder or a version in the registry."""

import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from components.errors import ConcordError
from components.settings import READER, Reader, load_settings
from components.shared.io.atomic import restored
from components.strict import validated

if TYPE_CHECKING:
    from components.shared.model.number_reader import NumberReader


@dataclass(frozen=True)
class LoadedReader:
    """A reader and where it comes from.

    Attributes:
        name: the folder, or the registered version.
        reader: on the accelerator if there is one.
        batch_size: images that are read at once.
    """

    name: str
    reader: "NumberReader"
    batch_size: int


def load_reader(model: str | None, params: Path) -> LoadedReader:
    """Loads a model.

    Args:
        model: a folder, NAME, NAME/VERSION or NAME@ALIAS; None: the champion of the params' registered model.
        params: settings; read only where they are needed.

    Raises:
        ConcordError: there is no such folder or version, or it cannot be loaded.
    """
    from components.shared.tracking.registered import named_version, version_number

    if model is None:
        name = load_settings(params).registered_model
        return _from_registry(name, version_number(name))
    if (folder := restored(Path(model))).is_dir():
        return _from_folder(folder, params)
    return _from_registry(*named_version(model))


def _from_folder(folder: Path, params: Path) -> LoadedReader:
    stored = folder / READER
    if stored.exists():
        return _load(str(folder), folder, _read_stored(stored), 0.0, stored)
    settings = load_settings(params)
    return _load(str(folder), folder, settings.reader(), settings.registry.tolerance_many, params)


def _read_stored(path: Path) -> Reader:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConcordError(f"{path}: cannot be read ({error}). Export the model again.") from None
    return validated(Reader, content, path)


def _from_registry(name: str, number: str) -> LoadedReader:
    from components.shared.tracking.connection import is_server
    from components.shared.tracking.registered import fetch_version

    with TemporaryDirectory(prefix="concord-") as folder:  # a server's files are deleted again once they are loaded
        version = fetch_version(name, number, Path(folder) if is_server() else None)
        title = f"{name} version {version.number}"
        return _load(title, version.folder, version.reader, 0.0, Path(title))


def _load(name: str, folder: Path, settings: Reader, tolerance: float, origin: Path) -> LoadedReader:
    """Loads a folder.

    Args:
        origin: of the settings, for the error message.
    """
    import numpy as np

    from components.shared.model.number_reader import NumberReader

    reader = NumberReader.load(folder, settings, tolerance)
    if reader.rule is not None and not np.array_equal(reader.rule.validation.values, reader.tree.values):
        known = reader.rule.validation.values
        raise ConcordError(
            f"{origin}: its task is not that of the model {name}, which reads {len(known)} numbers from {known[0]:g} "
            f"to {known[-1]:g}. Give the model's settings with --params FILE."
        )
    return LoadedReader(name, reader, settings.batch_size)
