"""A step in a Kubeflow pod: cached outputs are fetched, new ones pushed to the DVC remote, and Kubeflow gets a report.

A container's files are gone with it, so its step pushes its outputs itself before it counts as done. On one machine
outputs stay where dvc.yaml says, and `dvc push` is for the user to call.
"""

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from components.console import console
from components.errors import ConcordError
from components.settings import Settings
from components.shared.kubeflow.arguments import KubeflowArguments
from components.shared.kubeflow.executor import ExpectedOutputs, write_executor_output
from components.shared.kubeflow.names import PAGE, REPORT_PAGE, REUSE
from components.shared.tracking.hashes import dvc_content
from components.shared.tracking.lineage import UNKNOWN, Lineage, lineage_of
from components.shared.tracking.remote import VARIABLE, Remote, remote_of_environment
from components.steps import Step

if TYPE_CHECKING:
    from components.shared.tracking.reuse import CachedOutputs
    from components.shared.tracking.step_run import StepRun


@dataclass(frozen=True)
class KubeflowTask:
    """One step in one run of the pipeline.

    Attributes:
        step: from the step table.
        expected: the outputs that Kubeflow waits for.
        lineage: what the outputs are made from.
        remote: the DVC remote; None where none is named.
        pipeline_run: Kubeflow's id of the run.
        page: where the report goes as one HTML file; None for a step without a report.
    """

    step: Step
    expected: ExpectedOutputs
    lineage: Lineage
    remote: Remote | None
    pipeline_run: str | None
    page: Path | None

    @classmethod
    def of(
        cls, step: Step, settings: Settings, inputs: Mapping[str, Path], arguments: KubeflowArguments
    ) -> "KubeflowTask":
        """Hashes the inputs and checks that the remote can be read.

        Raises:
            ConcordError: an argument is not Kubeflow's, the image has other code than the pipeline, or the remote
                cannot be read: all before any work.
        """
        expected = ExpectedOutputs.of(arguments.executor_input)
        run = arguments.pipeline_run
        if run is not None and not re.fullmatch(r"[\w.:-]{1,200}", run):
            raise ConcordError(f"--pipeline-run: {run!r} is not the id of a run; leave it to Kubeflow.")
        remote = remote_of_environment()
        if remote is None:
            console.print(
                f"no DVC remote: {VARIABLE} is not set and .dvc/config names none, so outputs are neither pushed nor "
                "looked for",
                soft_wrap=True,
            )
        else:
            remote.check()
        lineage = lineage_of(step, settings, inputs)
        if arguments.code not in (None, UNKNOWN, lineage.code_mark) and lineage.code:
            raise ConcordError(
                f"{step.name}: the code of this image is {lineage.code_mark}, and the pipeline was compiled with "
                f"{arguments.code}. Build the image from the checkout that submits, push it under a tag of its own "
                "(its commit), and name it with --image."
            )
        return cls(step, expected, lineage, remote, run, arguments.page)

    def restore(self, outputs: Mapping[str, Path]) -> "CachedOutputs | None":
        """Fetches outputs that were computed before from equal inputs, code and settings, unless reuse is off."""
        if self.remote is None or os.environ.get(REUSE) == "off":
            return None
        from components.shared.tracking.reuse import restore

        return restore(self.step, self.lineage, self.remote, outputs)

    def publish(self, run: "StepRun", outputs: Mapping[str, Path], cached: "CachedOutputs | None") -> None:
        """Pushes the outputs to the remote, tags the MLflow run, and writes Kubeflow's report.

        Args:
            run: finished, so that it knows the outputs' hashes.
            cached: the outputs were fetched, so they are in the remote already.

        Raises:
            ConcordError: the remote cannot be reached. The step then counts as failed, since nobody could fetch its
                outputs.
        """
        from components.shared.tracking.step_run import REMOTE, REUSED

        if cached is not None:
            run.tag(REUSED, cached.where)
            for port, path in outputs.items():
                if port != "out":  # the step itself attaches what it computes
                    run.attach(path, port)
        if self.remote is not None:
            if cached is None:
                sent = sum(self.remote.push(outputs[port], content) for port, content in run.outputs.items())
                size = sum(content.size for content in run.outputs.values())
                console.print(
                    f"pushed to {self.remote.address}: {sent} new objects, {size / 1e6:.1f} MB in all", soft_wrap=True
                )
            run.tag(REMOTE, self.remote.address)
        self._report(run, outputs, cached)
        if self.page is not None:
            self.page.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(outputs["report"] / REPORT_PAGE, self.page)

    def _report(self, run: "StepRun", outputs: Mapping[str, Path], cached: "CachedOutputs | None") -> None:
        """Writes the artifacts' metadata and the metrics for Kubeflow."""
        common: dict[str, object] = {
            "dvc_key": self.lineage.key or "",
            "dvc_remote": self.remote.address if self.remote else "",
            "git_commit": run.commit,
            "code": self.lineage.code_mark,
            "mlflow_run_id": run.run_id,
            "reused": cached.where if cached else "",
            **{f"dvc_hash.in.{port}": md5 for port, md5 in run.inputs.items()},
        }
        contents = dict(run.outputs)
        if PAGE in self.expected.artifacts:
            contents[PAGE] = dvc_content(outputs["report"] / REPORT_PAGE)
        known: dict[str, dict[str, object]] = {}
        for port, content in contents.items():
            counted: dict[str, object] = {} if content.nfiles is None else {"dvc_nfiles": content.nfiles}
            known[port] = {"dvc_hash": content.md5, "dvc_size": content.size, **counted, **common}
        write_executor_output(self.expected, outputs, known)
