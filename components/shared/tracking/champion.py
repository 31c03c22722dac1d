"""The champion of a registered model, for whoever asks about it and does not change it."""

from typing import TYPE_CHECKING

from components.shared.tracking.connection import mlflow_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHAMPION = "champion"


def champion(client: "MlflowClient", name: str) -> "ModelVersion | None":
    """The version that has the alias, with its tags; None where there is no such model, or none of it has.

    Raises:
        ConcordError: the registry is away.
    """
    from mlflow.exceptions import MlflowException

    with mlflow_errors(f"ask for the champion of {name}"):
        try:
            number = client.get_registered_model(name).aliases.get(CHAMPION)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return None if number is None else client.get_model_version(name, str(number))
