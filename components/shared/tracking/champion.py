"""Reads which version of a registered model is the champion; components/register changes it."""

import json
from typing import TYPE_CHECKING

from components.settings import Task
from components.shared.tracking.connection import mlflow_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHAMPION = "champion"
SETTINGS = "concord.settings"  # tag of a version: the settings of the steps that made it, as JSON
_QUESTION = ("question", "unit", "low", "high", "resolution", "grey_bits")  # of a task: what a model answers


def champion(client: "MlflowClient", name: str) -> "ModelVersion | None":
    """Returns the version with the alias `champion` and its tags; None without such a model or alias.

    Raises:
        ConcordError: the registry cannot be reached.
    """
    from mlflow.exceptions import MlflowException

    with mlflow_errors(f"read the champion of {name}"):
        try:
            number = client.get_registered_model(name).aliases.get(CHAMPION)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return None if number is None else client.get_model_version(name, str(number))


def other_task(version: "ModelVersion", task: Task) -> str | None:
    """Returns in what a version's task differs from `task`, since then the two cannot be compared; None if it is the
    same, or if the version does not tell."""
    before = json.loads(version.tags.get(SETTINGS, "{}")).get("task")
    now = task.tree()
    if not before:
        return None
    before.setdefault("grey_bits", None)  # of a version from before there was this key
    names = [name for name in _QUESTION if before[name] != now[name]]
    return ", ".join(f"task.{name} was {before[name]!r}, is {now[name]!r}" for name in names) or None
