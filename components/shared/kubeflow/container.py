"""The container that runs a step on Kubeflow: the command that everybody uses, with Kubeflow's paths in it."""

from collections.abc import Mapping

from kfp import dsl

from components.shared.kubeflow.names import STATE
from components.steps import STEPS

IMAGE = "concord:latest"  # the pipeline puts the image of its compilation in its place


def container(
    name: str,
    code: str,
    experiment: str,
    settings: Mapping[str, str],
    ports: Mapping[str, dsl.Artifact],
    data_uri: str | None = None,
    data_hash: str | None = None,
    page: dsl.Artifact | None = None,
) -> dsl.ContainerSpec:
    """The step's container.

    Args:
        name: of the step.
        code: the mark of the step's code. Kubeflow's cache knows an image by its name alone, and a node may hold an
            older one of that name: by this input other code is another task, and an image of other code is refused.
        experiment: MLflow's.
        settings: section of params.yaml -> its content as JSON, a pipeline input. A step gets the sections that it
            reads and no others, since Kubeflow runs a step again when any of its inputs changed.
        ports: port name -> artifact.
        data_uri: address of the raw input, for the step that reads it. It is a parameter and no artifact: Kubeflow's
            launcher has endpoint and key of the pipeline root's bucket alone, and the step's client has those of the
            secrets.
        data_hash: of the raw input; Kubeflow's cache cannot see behind a URI.
        page: the report as one HTML file, for the step that writes one; Kubeflow's UI shows no folder.
    """
    step = STEPS[name]
    paths = {port: artifact.path for port, artifact in ports.items()}
    words = step.command(paths=paths if data_uri is None else {"data": data_uri, **paths})
    words += ["--code", code, "--experiment", experiment]
    for section, content in settings.items():
        words += ["--section", section, content]
    if data_hash is not None:
        words += ["--data-hash", data_hash]
    if page is not None:
        words += ["--page", page.path]
    if step.resumes:
        words += ["--state", STATE]
    words += ["--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER]
    return dsl.ContainerSpec(image=IMAGE, command=words[:4], args=words[4:])
