"""A step in a Kubeflow pod: fetches cached outputs, pushes new ones to the DVC remote, and reports to Kubeflow.

A container's files are deleted with it, so the step pushes its outputs before it succeeds. On one machine outputs stay
at the paths in dvc.yaml, and the user calls `dvc push`.
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
from components.shared.tracking.lineage import UNKNOWN, Lineage, compute_lineage
from components.shared.tracking.remote import REMOTE_ENV, Remote, configured_remote
from components.steps import Step

if TYPE_CHECKING:
    from components.shared.tracking.reuse import CachedOutputs
    from components.shared.tracking.step_run import StepRun


@dataclass(frozen=True)
class KubeflowTask:
    """One step in one run of the pipeline.

    Attributes:
        step: from the step table.
        expected: the outputs that Kubeflow expects.
        lineage: inputs, code and params of the outputs.
        remote: the DVC remote; None if none is configured.
        pipeline_run: Kubeflow's run id.
        page: path for the report as one HTML file; None for a step without a report.
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
                cannot be read. All of this is checked before the step starts.
        """
        expected = ExpectedOutputs.from_json(arguments.executor_input)
        run = arguments.pipeline_run
        if run is not None and not re.fullmatch(r"[\w.:-]{1,200}", run):
            raise ConcordError(f"--pipeline-run: {run!r} is not a run id. Only Kubeflow sets this flag.")
        remote = configured_remote()
        if remote is None:
            console.print(
                f"no DVC remote: {REMOTE_ENV} is not set and .dvc/config names none, so outputs are not pushed and "
                "cached outputs are not used",
                soft_wrap=True,
            )
        else:
            remote.check()
        lineage = compute_lineage(step, settings, inputs)
        if arguments.code not in (None, UNKNOWN, lineage.code_fingerprint) and lineage.code:
            raise ConcordError(
                f"{step.name}: the code of this image is {lineage.code_fingerprint}, and the pipeline was compiled "
                f"with {arguments.code}. Build the image from the checkout that submits, push it with its commit as "
                "the tag, and pass it with --image."
            )
        return cls(step, expected, lineage, remote, run, arguments.page)

    @property
    def stores_outputs(self) -> bool:
        """Whether there is a remote."""
        return self.remote is not None

    def restore(self, outputs: Mapping[str, Path]) -> "CachedOutputs | None":
        """Fetches cached outputs of equal inputs, code and settings, unless reuse is off; returns None without any."""
        if self.remote is None or os.environ.get(REUSE) == "off":
            return None
        from components.shared.tracking.reuse import restore

        return restore(self.step, self.lineage, self.remote, outputs)

    def publish(self, run: "StepRun", outputs: Mapping[str, Path], cached: "CachedOutputs | None") -> None:
        """Pushes the outputs to the remote, tags the MLflow run, and writes Kubeflow's report.

        Args:
            run: the finished run, which has the outputs' hashes.
            cached: the outputs if they were fetched, so that the remote has them; None if they were computed.

        Raises:
            ConcordError: the remote cannot be reached. The step then fails, because its outputs could not be fetched
                later.
        """
        from components.shared.tracking.tags import REMOTE, REUSED

        if cached is not None:
            run.tag(REUSED, cached.source)
            for port, path in outputs.items():
                if port != "out":  # a step attaches its own report when it computes it
                    run.attach(path, port)
        if self.remote is not None:
            if cached is None:
                sent = sum(self.remote.push(outputs[port], content) for port, content in run.outputs.items())
                size = sum(content.size for content in run.outputs.values())
                console.print(
                    f"pushed to {self.remote.address}: {sent} new objects, {size / 1e6:.1f} MB in total", soft_wrap=True
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
            "code": self.lineage.code_fingerprint,
            "mlflow_run_id": run.run_id,
            "reused": cached.source if cached else "",
            **{f"dvc_hash.in.{port}": md5 for port, md5 in run.inputs.items()},
        }
        contents = dict(run.outputs)
        if PAGE in self.expected.artifacts:
            contents[PAGE] = dvc_content(outputs["report"] / REPORT_PAGE)
        metadata: dict[str, dict[str, object]] = {}
        for port, content in contents.items():
            files: dict[str, object] = {} if content.nfiles is None else {"dvc_nfiles": content.nfiles}
            metadata[port] = {"dvc_hash": content.md5, "dvc_size": content.size, **files, **common}
        write_executor_output(self.expected, outputs, metadata)
