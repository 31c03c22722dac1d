"""Builds the Kubeflow container of a step: the usual command line with Kubeflow's paths."""

from collections.abc import Mapping

from kfp import dsl

from components.shared.kubeflow.names import STATE
from components.steps import STEPS

IMAGE = "concord:latest"  # placeholder; compiling the pipeline replaces it


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
    """Returns the container specification of a step.

    Args:
        name: of the step.
        code: fingerprint of the step's code. Kubeflow's cache identifies an image only by its name, and a node may hold
            an older image of that name. As an input, the fingerprint makes changed code a different task, and the step
            rejects an image with other code.
        experiment: name of the MLflow experiment.
        settings: section of params.yaml -> its content as JSON, a pipeline input. A step gets only the sections that it
            reads, because Kubeflow runs a step again when any of its inputs changes.
        ports: port name -> artifact.
        data_uri: address of the raw input, for the step that reads it. A parameter and not an artifact: Kubeflow's
            launcher has credentials only for the pipeline root's bucket, and the step has those of the secrets.
        data_hash: DVC hash of the raw input, because Kubeflow's cache does not see changes behind a URI.
        page: the report as one HTML file, for a step that writes a report; Kubeflow's UI cannot show a folder.
    """
    step = STEPS[name]
    paths = {port: artifact.path for port, artifact in ports.items()}
    command = step.command(paths=paths if data_uri is None else {"data": data_uri, **paths})
    command += ["--code", code, "--experiment", experiment]
    for section, content in settings.items():
        command += ["--section", section, content]
    if data_hash is not None:
        command += ["--data-hash", data_hash]
    if page is not None:
        command += ["--page", page.path]
    if step.resumes:
        command += ["--state", STATE]
    command += ["--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER]
    return dsl.ContainerSpec(image=IMAGE, command=command[:4], args=command[4:])
