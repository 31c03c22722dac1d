"""Fetches what a registered version holds: the model folder, and how numbers are read from it.

Only its files are read; none of the code that is stored with a version runs.
"""

from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import ValidationError

from components.errors import ConcordError
from components.settings import Reader
from components.shared.tracking.connection import connect, mlflow_errors, tracking_uri


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


def fetch_version(name: str, which: str, target: Path | None = None) -> RegisteredVersion:
    """Downloads a version of a registered model.

    Args:
        name: of the registered model.
        which: number or alias of the version.
        target: folder to download to. None: a temporary folder, or the store's own folder where it is on this machine.

    Raises:
        ConcordError: there is no such version, the registry cannot be reached, or another release of Concord wrote it.
    """
    import mlflow

    client = connect()
    with mlflow_errors(f"read {which} of the registered model {name}"):
        mlflow.set_tracking_uri(tracking_uri())
        number = which if which.isdigit() else str(client.get_model_version_by_alias(name, which).version)
        client.get_model_version(name, number)  # the error of a download does not say that the version is missing
        uri = f"models:/{name}/{number}"
        package = Path(mlflow.artifacts.download_artifacts(uri, dst_path=None if target is None else str(target)))
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
