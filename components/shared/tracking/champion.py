"""Reads which version of a registered model is the champion; components/register changes it."""

from typing import TYPE_CHECKING

from components.shared.tracking.connection import mlflow_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHAMPION = "champion"


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
