"""The connection to MLflow: which store, without its log output, and with errors that hold no secret."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from components.errors import ConcordError
from components.shared.io.secrets import masked

if TYPE_CHECKING:
    from mlflow import MlflowClient

DEFAULT_URI = "sqlite:///mlflow.db"


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or a database in the working directory."""
    return os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI


def absolute_tracking_uri() -> str:
    """The same store, named so that a process in another working directory finds it."""
    uri = tracking_uri()
    scheme, marker, path = uri.partition(":///")
    if marker and scheme.startswith("sqlite") and path and not path.startswith("/"):
        return f"{scheme}:///{Path(path).resolve()}"
    return uri


def quiet() -> None:
    """Keeps MLflow's own talk (schema migrations, missing git, telemetry) off the screen; warnings and errors stay.

    An unreachable server is given up after some ten seconds, not MLflow's four minutes. Artifacts go through the
    server: a store that it knows by an address of its own network is not asked directly. Values that are set already in
    the environment are left.
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
    """A client of the store that MLFLOW_TRACKING_URI names. MLflow is imported here, which takes seconds.

    Raises:
        ConcordError: the store cannot be reached or opened.
    """
    quiet()
    from mlflow import MlflowClient

    with mlflow_errors("open the store"):
        client = MlflowClient(tracking_uri=tracking_uri())
        client.search_experiments(max_results=1)
    return client


@contextmanager
def mlflow_errors(action: str) -> Iterator[None]:
    """Turns MLflow's and its store's errors into one sentence for a person; `action` completes "could not ..."."""
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError, OSError) as error:
        reason = masked(str(error).strip().partition("\n")[0])[:300]
        raise ConcordError(
            f"MLflow at {masked(tracking_uri())}: could not {action}: {reason}. "
            "Check MLFLOW_TRACKING_URI and that its server runs; without it the runs go to mlflow.db here."
        ) from None
