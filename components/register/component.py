"""The Kubeflow component of register: the same command in a container."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Metrics, Model, Output

from components.shared.kubeflow.container import container


@dsl.container_component
def register(
    code: str,
    experiment: str,
    task_settings: str,
    model_settings: str,
    answer_settings: str,
    evaluate_settings: str,
    register_settings: str,
    ingest: Input[Dataset],
    sft: Input[Model],
    grpo: Input[Model],
    evaluate: Input[Dataset],
    out: Output[Artifact],
    metrics: Output[Metrics],
) -> dsl.ContainerSpec:
    """Registers the model and promotes it if it is better than the current champion."""
    return container(
        "register",
        code,
        experiment,
        {
            "task": task_settings,
            "model": model_settings,
            "answer": answer_settings,
            "evaluate": evaluate_settings,
            "register": register_settings,
        },
        {"ingest": ingest, "sft": sft, "grpo": grpo, "evaluate": evaluate, "out": out},
    )
