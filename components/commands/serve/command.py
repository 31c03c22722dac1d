"""`python -m components serve`: MLflow's scoring server on the champion, or on another version."""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import yaml

from components.console import console
from components.errors import ConcordError
from components.settings import load_settings
from components.shared.io.bare_environment import bare_environment
from components.shared.tracking.connection import is_server, mlflow_errors
from components.shared.tracking.registered import download, named_version

MODEL_VARIABLE = "CONCORD_MODEL"
BAKED = Path("/model")  # the version in the image of docker/Dockerfile, if it was built with one
REGISTERED = "models:/"
METADATA = "MLmodel"  # MLflow's file in each model folder
SCRIPT = Path(__file__).with_name("server.py")


def main(arguments: Sequence[str]) -> NoReturn:
    """Finds the version and becomes its server: the same process, so that signals reach the server itself.

    The server runs code that is stored with the version, so it gets no secret of this environment.

    Raises:
        ConcordError: there is no such model, or the registry cannot be reached.
    """
    args = parser().parse_args(arguments)
    model = args.model or os.environ.get(MODEL_VARIABLE) or _default_model(args.params)
    location, title = located(model)
    console.print(f"loading {title}", markup=False)
    folder, more = _fetched(location) if location.startswith(REGISTERED) else (location, [])
    words = [sys.executable, "-I", str(SCRIPT), folder, title, "--host", args.host, "--port", str(args.port), *more]
    os.execve(sys.executable, words, bare_environment())


def _fetched(uri: str) -> tuple[str, list[str]]:
    """Returns the folder with a version's files, and the words for the server that deletes them at its end."""
    with mlflow_errors(f"fetch {uri}"):
        if not is_server():
            return str(download(uri, None).resolve()), []
        scratch = tempfile.mkdtemp(prefix="concord-serve-")
        try:
            return str(download(uri, Path(scratch))), ["--scratch", scratch]
        except BaseException:
            shutil.rmtree(scratch)
            raise


def _default_model(params: Path) -> str:
    return str(BAKED) if (BAKED / METADATA).is_file() else load_settings(params).registered_model


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    top = argparse.ArgumentParser(
        prog="python -m components serve", description="Answers requests over HTTP with a registered version."
    )
    top.add_argument("--params", type=Path, default=Path("params.yaml"), help="settings that name the model")
    top.add_argument(
        "--model",
        help="NAME (its champion), NAME/VERSION, NAME@ALIAS, or a folder that holds a version, with its file MLmodel "
        f"(default: ${MODEL_VARIABLE}, or the registered model of the params)",
    )
    top.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    top.add_argument("--port", type=int, default=5002, help="0: any free port (default: %(default)s)")
    return top


def located(model: str) -> tuple[str, str]:
    """Returns where MLflow loads a model from, and a title for people: `gauge-reader version 3`.

    Args:
        model: NAME, NAME/VERSION, NAME@ALIAS or a folder.

    Raises:
        ConcordError: there is no such model, version or alias, or the registry cannot be reached.
    """
    folder = Path(model)
    if (folder / METADATA).is_file():
        return str(folder.resolve()), _folder_title(folder)
    if folder.is_dir() or folder.is_absolute():
        raise ConcordError(
            f"{model}: no version is in this folder (it has no file MLmodel). Download one into it (mlflow artifacts "
            "download --artifact-uri models:/NAME/VERSION --dst-path FOLDER), or name one in the registry: --model "
            "NAME/VERSION."
        )
    name, number = named_version(model)
    return f"{REGISTERED}{name}/{number}", f"{name} version {number}"


def _folder_title(folder: Path) -> str:
    """Name and version of a model folder, if it was downloaded from a registry."""
    try:
        origin = yaml.safe_load((folder / "registered_model_meta").read_text(encoding="utf-8"))
        return f"{origin['model_name']} version {origin['model_version']}"
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return f"the model in {folder}"
