"""Command-line arguments that only the compiled pipeline passes to a step, beyond its paths and settings."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class KubeflowArguments:
    """Values of these flags.

    Attributes:
        executor_input: Kubeflow's JSON that describes the task's inputs and outputs.
        pipeline_run: Kubeflow's run id; None if unknown.
        code: fingerprint of the code that the pipeline was compiled with; None or `none` if unknown.
        page: path for the report as one HTML file, for a step that writes a report; Kubeflow's UI cannot show a folder.
    """

    executor_input: str
    pipeline_run: str | None = None
    code: str | None = None
    page: Path | None = None
