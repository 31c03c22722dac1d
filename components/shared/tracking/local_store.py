"""Keeps the local store, mlflow.db, and its artifacts, mlruns/, together when a checkout is moved or copied.

MLflow stores absolute paths. Without this, a moved or copied checkout would write its artifacts to the old path, and
could not load what lies beside its database.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote

from components.console import console

DATABASE, ARTIFACTS = "mlflow.db", "mlruns"
# Every column of MLflow's tables that holds the path of artifacts.
_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
)
_COPIES = (".dvc", "tmp", "exps")  # below a checkout: the copies in which `dvc exp run --temp` and its queue work


def store_folder(folder: Path) -> Path:
    """Returns the folder of mlflow.db for a working directory.

    DVC deletes the copy in which `dvc exp run --temp` works, and a version that is registered there would be lost: such
    a copy uses the store of the checkout.
    """
    parts = folder.resolve().parts
    for at in range(1, len(parts) - len(_COPIES) + 1):
        if parts[at : at + len(_COPIES)] == _COPIES:
            return Path(*parts[:at])
    return folder.resolve()


def follow(database: Path) -> None:
    """Corrects the paths of artifacts in a database whose mlruns/ lies beside it and was elsewhere before.

    A path whose files did not come along stays as it is; but new files are never written beside another database.
    """
    if not database.is_file():
        return
    home = database.resolve().parent
    with closing(sqlite3.connect(database, timeout=30)) as db, db:
        changed = [(table, column, *change) for table, column in _COLUMNS for change in _moved(db, table, column, home)]
        for table, column, row, path in changed:
            db.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (path, row))
    if any(table != "experiments" for table, *_ in changed):  # else nothing was stored yet
        message = f"{database}: was moved or copied; {len(changed)} paths of artifacts now lead to {home / ARTIFACTS}"
        console.print(message, markup=False, soft_wrap=True)


def _moved(db: sqlite3.Connection, table: str, column: str, home: Path) -> Iterator[tuple[int, str]]:
    """Row id and new path of each entry that belongs beside the database."""
    try:
        rows = db.execute(f"SELECT rowid, {column} FROM {table} WHERE {column} LIKE '%/{ARTIFACTS}/%'").fetchall()
    except sqlite3.OperationalError:  # an older or unfinished database without this table; MLflow reports it
        return
    for row, location in rows:
        is_uri = location.startswith("file://")
        old = Path(unquote(location.removeprefix("file://")) if is_uri else location)
        if not old.is_absolute():  # s3://bucket/mlruns/..., mlflow-artifacts:/...
            continue
        before, _, below = os.fspath(old).partition(f"/{ARTIFACTS}/")
        new = home / ARTIFACTS / below
        others = table == "experiments" and (Path(before) / DATABASE).exists()
        if Path(before) != home and (others or new.exists() or not old.exists()):
            yield row, new.as_uri() if is_uri else os.fspath(new)
