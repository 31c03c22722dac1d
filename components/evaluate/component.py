"""The Kubeflow component of evaluate: the same command in a container."""

from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Input, Metrics, Model, Output

from components.shared.kubeflow.container import container


@dsl.container_component
def evaluate(
    code: str,
    experiment: str,
    task_settings: str,
    model_settings: str,
    sft_settings: str,
    answer_settings: str,
    evaluate_settings: str,
    register_settings: str,
    ingest: Input[Dataset],
    sft: Input[Model],
    grpo: Input[Model],
    out: Output[Dataset],
    report: Output[Artifact],
    page: Output[HTML],
    metrics: Output[Metrics],
) -> dsl.ContainerSpec:
    """Evaluates every model on the test set, by shot group."""
    return container(
        "evaluate",
        code,
        experiment,
        {
            "task": task_settings,
            "model": model_settings,
            "sft": sft_settings,
            "answer": answer_settings,
            "evaluate": evaluate_settings,
            "register": register_settings,
        },
        {"ingest": ingest, "sft": sft, "grpo": grpo, "out": out, "report": report},
        page=page,
    )
