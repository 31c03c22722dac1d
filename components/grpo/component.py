"""The Kubeflow component of grpo: the same command, in a container."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Model, Output

from components.shared.kubeflow.container import container


@dsl.container_component
def grpo(
    code: str,
    experiment: str,
    task_settings: str,
    model_settings: str,
    grpo_settings: str,
    ingest: Input[Dataset],
    sft: Input[Model],
    out: Output[Model],
    metrics: Output[Metrics],
) -> dsl.ContainerSpec:
    """Trains the warm start further with the batch-level reward."""
    return container(
        "grpo",
        code,
        experiment,
        {"task": task_settings, "model": model_settings, "grpo": grpo_settings},
        {"ingest": ingest, "sft": sft, "out": out},
    )
