"""Connects to MLflow, silences its log output, and reports its errors without secrets."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from components.errors import ConcordError
from components.shared.io.locks import brief_lock
from components.shared.io.secrets import masked
from components.shared.io.transient import concord_error
from components.shared.tracking.local_store import DATABASE, follow, store_folder

if TYPE_CHECKING:
    from mlflow import MlflowClient

DEFAULT_URI = f"sqlite:///{DATABASE}"
# What SQLite says where the file system has no locks.
WITHOUT_LOCKS = ("database is locked", "locking protocol", "disk I/O error")


def tracking_uri() -> str:
    """Returns MLFLOW_TRACKING_URI, by default a database in the working directory, see `store_folder`."""
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return uri
    home = store_folder(Path())
    return DEFAULT_URI if home == Path().resolve() else f"sqlite:///{_quoted(str(home / DATABASE))}"


def is_server() -> bool:
    """Whether the store is a server, whose files must be downloaded."""
    return tracking_uri().startswith(("http://", "https://"))


def absolute_tracking_uri() -> str:
    """Returns the tracking URI with an absolute path, so that a process in another working directory can use it.

    `?`, which would begin the URI's options, and `%` are quoted. MLflow then also makes an empty folder of the quoted
    name, which does no harm.
    """
    uri = tracking_uri()
    scheme, marker, path = uri.partition(":///")
    if marker and scheme.startswith("sqlite") and path and not path.startswith("/"):
        name, mark, options = path.partition("?")
        return f"{scheme}:///{_quoted(str(Path(unquote(name)).resolve()))}{mark}{options}"
    return uri


def correct_paths() -> None:
    """Corrects the paths of artifacts if the store is the local one and was moved, see `local_store.follow`."""
    database = store_folder(Path()) / DATABASE
    if absolute_tracking_uri() == f"sqlite:///{_quoted(str(database))}":
        follow(database)


def _quoted(path: str) -> str:
    return path.replace("%", "%25").replace("?", "%3F")


def local_artifacts(name: str) -> str | None:
    """Where an experiment keeps its artifacts; None for MLflow's default, which misreads a `%` in the folder's path."""
    if tracking_uri() == DEFAULT_URI and "%" in str(Path.cwd()):
        return (Path.cwd() / "mlruns" / quote(name, safe="")).as_uri()
    return None


def quiet() -> None:
    """Silences MLflow's informational output (schema migrations, missing git, telemetry), not warnings or errors.

    Also limits retries, so that an unreachable server is reported after about ten seconds instead of four minutes, and
    sends artifacts through the server, because the artifact store's address may only be valid in the server's network.
    Variables that are already set in the environment keep their values.
    """
    for name, value in (
        ("GIT_PYTHON_REFRESH", "quiet"),
        ("MLFLOW_LOGGING_LEVEL", "WARNING"),
        ("MLFLOW_DISABLE_TELEMETRY", "true"),
        ("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false"),
        ("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true"),
        ("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", "false"),
        ("MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD", "false"),
        ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3"),
        ("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1"),
        ("MLFLOW_HTTP_REQUEST_TIMEOUT", "30"),
    ):
        os.environ.setdefault(name, value)
    for name in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)


def connect() -> "MlflowClient":
    """Returns a client of the store at MLFLOW_TRACKING_URI. Imports MLflow, which takes seconds.

    Raises:
        ConcordError: the store cannot be reached or opened.
    """
    quiet()
    from mlflow import MlflowClient

    correct_paths()
    with mlflow_errors("open the store"), store_lock():
        client = MlflowClient(tracking_uri=tracking_uri())
        client.search_experiments(max_results=1)
    return client


def database_file(uri: str) -> Path | None:
    """Returns the file of an SQLite store; None for any other store."""
    scheme, marker, path = uri.partition(":///")
    if not marker or scheme.partition("+")[0] != "sqlite" or path.startswith((":memory:", "file:")):
        return None
    return Path(unquote(path.partition("?")[0]))


@contextmanager
def store_lock() -> Iterator[None]:
    """Lets one process at a time create or migrate an SQLite store, or create the runs that steps share in it."""
    file = database_file(tracking_uri())
    if file is None or not file.parent.is_dir():
        yield
        return
    with brief_lock(file.with_name(f".{file.name}.lock")):
        yield


@contextmanager
def mlflow_errors(action: str) -> Iterator[None]:
    """Turns errors of MLflow and its store into a one-line ConcordError; `action` completes "could not ...".

    Raises:
        RetryableError: a server was not reached, or is too busy.
        ConcordError: any other error of the store, such as a refused login.
    """
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError, OSError) as error:
        if _status(error) == HTTPStatus.UNAUTHORIZED:
            raise ConcordError(
                f"MLflow at {masked(tracking_uri())}: could not {action}: the server refuses the login, or got none. "
                "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD; for the server of `make up`: set -a; . "
                "docker/services.env; set +a"
            ) from None
        reason = masked(str(error).strip().partition("\n")[0])[:300]
        local = database_file(tracking_uri())
        message = f"MLflow at {masked(tracking_uri())}: could not {action}: {reason}."
        if local and any(words in reason for words in WITHOUT_LOCKS):
            raise ConcordError(
                f"{message} SQLite needs a file system with locks, which some network volumes lack, and nobody else "
                "who holds its lock for long. Put the store on a local disk "
                "(MLFLOW_TRACKING_URI=sqlite:////path/mlflow.db) or use a server."
            ) from None
        message += (
            " Check MLFLOW_TRACKING_URI and that its server runs. Unset it to use mlflow.db in the working directory."
        )
        raise (ConcordError(message) if local else concord_error(message, error)) from None


def _status(error: Exception) -> int | None:
    """The HTTP status of a server's answer; None for any other error."""
    if (response := getattr(error, "response", None)) is not None:  # of requests, for artifacts
        return int(response.status_code)
    status = getattr(error, "get_http_status_code", None)  # of MLflow
    return status() if status else None
