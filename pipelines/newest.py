"""The Kubeflow component that finds the newest version of the raw input: what a schedule runs first."""

from kfp import dsl

from components.shared.kubeflow.container import IMAGE


@dsl.container_component
def newest(pattern: str, uri: dsl.OutputPath(str), hash: dsl.OutputPath(str)) -> dsl.ContainerSpec:  # type: ignore[valid-type]
    """Finds the newest folder that matches `s3://bucket/gauges-*`, and the hash of its listing."""
    words = [pattern, "--uri", uri, "--hash", hash, "--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER]
    return dsl.ContainerSpec(image=IMAGE, command=["python", "-m", "components", "newest"], args=words)
