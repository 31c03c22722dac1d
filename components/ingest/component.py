"""The Kubeflow component of ingest: runs the step's command in a container."""

from kfp import dsl
from kfp.dsl import Dataset, Metrics, Output

from components.shared.kubeflow.container import container


@dsl.container_component
def ingest(
    code: str,
    experiment: str,
    data_uri: str,
    data_hash: str,
    task_settings: str,
    ingest_settings: str,
    out: Output[Dataset],
    metrics: Output[Metrics],
) -> dsl.ContainerSpec:
    """Splits the raw input and writes it to Parquet shards."""
    return container(
        "ingest",
        code,
        experiment,
        {"task": task_settings, "ingest": ingest_settings},
        {"out": out},
        data_uri,
        data_hash,
    )
