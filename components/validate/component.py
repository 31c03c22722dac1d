"""The Kubeflow component of validate: the same command in a container."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Metrics, Output

from components.shared.kubeflow.container import container


@dsl.container_component
def validate(
    code: str,
    experiment: str,
    task_settings: str,
    validate_settings: str,
    register_settings: str,
    ingest: Input[Dataset],
    out: Output[Artifact],
    metrics: Output[Metrics],
) -> dsl.ContainerSpec:
    """Checks the split tables against the expectations."""
    return container(
        "validate",
        code,
        experiment,
        {"task": task_settings, "validate": validate_settings, "register": register_settings},
        {"ingest": ingest, "out": out},
    )
