"""What the compiled pipeline passes to a step's container beyond paths and settings."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class KubeflowArguments:
    """Flags of the command line.

    Attributes:
        executor_input: Kubeflow's JSON about the task's inputs and outputs.
        pipeline_run: Kubeflow's id of the run; None where it is not known.
        code: mark of the code that the pipeline was compiled with; None or `none` where it is not known.
        page: where the report goes as one HTML file, for the step that writes one; Kubeflow's UI shows no folder.
    """

    executor_input: str
    pipeline_run: str | None = None
    code: str | None = None
    page: Path | None = None
