"""Finds a registered version and fetches what it holds: the model folder, and how numbers are read from it.

Only its files are read; none of the code that is stored with a version runs.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import ValidationError

from components.errors import ConcordError
from components.settings import Reader
from components.shared.io.secrets import masked
from components.shared.tracking.champion import CHAMPION
from components.shared.tracking.connection import connect, mlflow_errors, tracking_uri

NAMED = re.compile(r"(?P<name>[^/@:]+)(/(?P<number>[0-9]+)|@(?P<alias>[^/@:]+))?")


@dataclass(frozen=True)
class RegisteredVersion:
    """One version of a registered model, on this machine.

    Attributes:
        name: of the registered model.
        number: of the version.
        folder: weights, processor and validation.parquet.
        reader: how numbers are read from them.
    """

    name: str
    number: str
    folder: Path
    reader: Reader


def named_version(model: str) -> tuple[str, str]:
    """Name and number of the version that a command line names.

    Args:
        model: NAME (its champion), NAME/VERSION or NAME@ALIAS.

    Raises:
        ConcordError: it is none of these, there is no such version, or the registry cannot be reached.
    """
    parts = NAMED.fullmatch(model)
    if parts is None:
        raise ConcordError(
            f"--model {model}: no such folder, and not a registered model, which is NAME, NAME/VERSION or NAME@ALIAS."
        )
    return parts["name"], version_number(parts["name"], parts["number"] or parts["alias"] or CHAMPION)


def version_number(name: str, which: str = CHAMPION) -> str:
    """The number of a version in the registry.

    Args:
        which: its number or alias.

    Raises:
        ConcordError: there is no such version, or the registry cannot be reached.
    """
    client = connect()
    with mlflow_errors(f"list the versions of {name}"):
        numbers = [str(version.version) for version in client.search_model_versions(f"name = '{name}'")]
        aliases = client.get_registered_model(name).aliases if numbers else {}
    if not numbers:
        raise ConcordError(
            f"{name}: no version in the registry at {masked(tracking_uri())}. Register one (make run), or name another "
            "model or a model folder with --model."
        )
    if which in numbers:
        return which
    if which.isdigit():
        raise ConcordError(f"{name}: no version {which} in the registry. List them: python -m components registry show")
    if which not in aliases:
        raise ConcordError(
            f"{name}: no version has the alias {which}. Name a version (--model {name}/N), or promote one: python -m "
            "components registry promote --version N --reason ..."
        )
    return str(aliases[which])


def fetch_version(name: str, number: str, target: Path | None = None) -> RegisteredVersion:
    """Downloads a version of a registered model.

    Args:
        name: of the registered model.
        number: of the version.
        target: folder to download to. None: a temporary folder, or the store's own folder where it is on this machine.

    Raises:
        ConcordError: there is no such version, the registry cannot be reached, or another release of Concord wrote it.
    """
    with mlflow_errors(f"read version {number} of the registered model {name}"):
        connect().get_model_version(name, number)  # the error of a download does not say that the version is missing
        uri = f"models:/{name}/{number}"
        package = download(uri, target)
    try:
        python = yaml.safe_load((package / "MLmodel").read_text(encoding="utf-8"))["flavors"]["python_function"]
        return RegisteredVersion(
            name, number, package / python["artifacts"]["model"]["path"], Reader.model_validate(python["config"])
        )
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValidationError):
        raise ConcordError(
            f"{name} version {number}: it was not registered by this release of Concord. Load it with the code that is "
            f'stored with it: mlflow.pyfunc.load_model("{uri}").'
        ) from None


def download(uri: str, target: Path | None) -> Path:
    """Downloads all files of a version, and returns their folder.

    Args:
        uri: models:/NAME/NUMBER.
        target: folder to download to. None: a temporary folder, or the store's own folder where it is on this machine.

    Raises:
        MlflowException, RequestException, OSError: they cannot be fetched.
    """
    import mlflow

    mlflow.set_tracking_uri(tracking_uri())
    return Path(mlflow.artifacts.download_artifacts(uri, dst_path=None if target is None else str(target)))
