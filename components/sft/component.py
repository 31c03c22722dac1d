"""The Kubeflow component of sft: the same command in a container."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Metrics, Model, Output

from components.shared.kubeflow.container import container


@dsl.container_component
def sft(
    code: str,
    experiment: str,
    task_settings: str,
    model_settings: str,
    sft_settings: str,
    ingest: Input[Dataset],
    validate: Input[Artifact],
    out: Output[Model],
    metrics: Output[Metrics],
) -> dsl.ContainerSpec:
    """Trains the warm start until validation MAE stops improving."""
    return container(
        "sft",
        code,
        experiment,
        {"task": task_settings, "model": model_settings, "sft": sft_settings},
        {"ingest": ingest, "validate": validate, "out": out},
    )
