"""A step as a task of Kubeflow: outputs that exist are fetched, new ones go to the DVC remote, and Kubeflow is told.

Only there. On one machine the outputs stay where dvc.yaml says, `dvc repro` knows what to run, and a person says when
to `dvc push`; a container's files are gone with it, so its step pushes them itself before it counts as done.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from components.settings import Settings
from components.shared.errors import ConcordError
from components.shared.kubeflow.executor import Told, write_executor_output
from components.shared.kubeflow.names import PAGE, REPORT_PAGE, REUSE
from components.shared.tracking.hashes import dvc_content
from components.shared.tracking.lineage import UNKNOWN, Lineage, lineage_of
from components.shared.tracking.remote import VARIABLE, Remote, remote_of_environment
from components.steps import Step

if TYPE_CHECKING:
    from components.shared.tracking.reuse import Made
    from components.shared.tracking.runs import StepRun

console = Console(stderr=True, highlight=False)


@dataclass
class Task:
    """One step in one run of the pipeline.

    Attributes:
        step: from the step table.
        told: where Kubeflow wants to be told.
        lineage: what the outputs are made from.
        remote: the DVC remote; None where none is named.
        pipeline_run: Kubeflow's id of the run.
        made: outputs that were fetched, by whom they were made.
    """

    step: Step
    told: Told
    lineage: Lineage
    remote: Remote | None
    pipeline_run: str | None
    made: "Made | None" = None

    @classmethod
    def of(
        cls,
        step: Step,
        settings: Settings,
        inputs: Mapping[str, Path],
        executor_input: str,
        pipeline_run: str | None,
        code: str | None = None,
    ) -> "Task":
        """Hashes the inputs and asks the remote whether it is there.

        Args:
            code: the mark of the code that the pipeline was compiled with; None or `none` where nobody knows.

        Raises:
            ConcordError: no JSON of Kubeflow's, no id, other code here than in the pipeline, or the remote cannot be
                read: all before any work.
        """
        told = Told.of(executor_input)
        if pipeline_run is not None and not re.fullmatch(r"[\w.:-]{1,200}", pipeline_run):
            raise ConcordError(f"--pipeline-run: {pipeline_run!r} is no id of a run; leave it to Kubeflow.")
        remote = remote_of_environment()
        if remote is None:
            console.print(
                f"no DVC remote: {VARIABLE} is not set and .dvc/config names none, so the outputs are not pushed, and "
                "none are looked for",
                soft_wrap=True,
            )
        else:
            remote.check()
        lineage = lineage_of(step, settings, inputs)
        if code not in (None, UNKNOWN, lineage.code_mark) and lineage.code:
            raise ConcordError(
                f"{step.name}: the code of this image is {lineage.code_mark}, and the pipeline was compiled with "
                f"{code}. Build the image from the checkout that submits, push it under a tag of its own (its commit), "
                "and name it with --image."
            )
        return cls(step, told, lineage, remote, pipeline_run)

    def look_for(self, outputs: Mapping[str, Path]) -> None:
        """Fetches the outputs, where they were made before; `made` says so. Not where REUSE says off."""
        if self.remote is not None and os.environ.get(REUSE) != "off":
            from components.shared.tracking.reuse import fetched

            self.made = fetched(self.step, self.lineage, self.remote, outputs)

    def show(self, run: "StepRun", outputs: Mapping[str, Path]) -> None:
        """Puts beside the run what a person wants to see of fetched outputs; the step that computes does so itself."""
        for port, path in outputs.items():
            if port != "out":
                run.attach(path, port)

    def push(self, run: "StepRun", outputs: Mapping[str, Path]) -> None:
        """Takes the outputs to the remote and says so in MLflow.

        Raises:
            ConcordError: the remote is away. The run then counts as failed, since nobody could fetch what it made.
        """
        from components.shared.tracking.runs import REMOTE, REUSED

        if self.made is not None:
            run.tag(REUSED, self.made.where)
        if self.remote is None:
            return
        if self.made is None:
            sent = sum(self.remote.push(outputs[port], content) for port, content in run.outputs.items())
            size = sum(content.size for content in run.outputs.values())
            console.print(
                f"pushed to {self.remote.address}: {sent} new objects, {size / 1e6:.1f} MB in all", soft_wrap=True
            )
        run.tag(REMOTE, self.remote.address)

    def report(self, run: "StepRun", outputs: Mapping[str, Path]) -> None:
        """Tells Kubeflow of the artifacts and of the metrics."""
        common: dict[str, object] = {
            "dvc_key": self.lineage.key or "",
            "dvc_remote": self.remote.address if self.remote else "",
            "git_commit": run.commit,
            "code": self.lineage.code_mark,
            "mlflow_run_id": run.run_id,
            "reused": self.made.where if self.made else "",
            **{f"dvc_hash.in.{port}": md5 for port, md5 in run.inputs.items()},
        }
        contents = dict(run.outputs)
        if PAGE in self.told.artifacts:  # the one file of the report that Kubeflow's UI shows
            contents[PAGE] = dvc_content(outputs["report"] / REPORT_PAGE)
        known: dict[str, dict[str, object]] = {}
        for port, content in contents.items():
            counted: dict[str, object] = {} if content.nfiles is None else {"dvc_nfiles": content.nfiles}
            known[port] = {"dvc_hash": content.md5, "dvc_size": content.size, **counted, **common}
        write_executor_output(self.told, outputs, known)
