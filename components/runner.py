"""Runs one step from start to end: inputs, locks, cached outputs, ranks, the MLflow run, publication."""

import importlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from components.console import console
from components.errors import ConcordError, RetryableError
from components.launcher import launch, rank, started_by_launcher, to_launch, world_size
from components.s3_address import S3Address, parse_location
from components.settings import Settings, load_settings
from components.shared.io.atomic import replace_folder, restored
from components.shared.io.locks import output_lock, work_lock
from components.shared.kubeflow.names import NODE_FOLDER, TRAIN_JOB
from components.steps import STEPS, Step, metrics_file

if TYPE_CHECKING:
    from components.shared.kubeflow.arguments import KubeflowArguments
    from components.shared.tracking.lineage import Lineage
    from components.shared.tracking.reuse import CachedOutputs
    from components.shared.tracking.step_run import StepRun


@dataclass(frozen=True)
class StepCall:
    """One call of a step.

    Attributes:
        step, settings: what to run, and the whole experiment.
        inputs, outputs: port name -> path; `inputs` without the raw input.
        state: folder for training state that survives a kill; only steps that resume use it.
        words: the command line, with which ranks are started.
        data: folder or address of the raw input; None for `ingest.path`.
        data_hash: DVC hash that the raw input must have; None for any.
        kubeflow: what Kubeflow passes to the step's container; None on a machine.
        params: the file that the settings came from; None if the command line holds those of the step.
    """

    step: Step
    settings: Settings
    inputs: Mapping[str, Path]
    outputs: Mapping[str, Path]
    state: Path
    words: tuple[str, ...]
    data: str | None = None
    data_hash: str | None = None
    kubeflow: "KubeflowArguments | None" = None
    params: Path | None = None

    def settings_now(self) -> Settings:
        """The settings with the step's sections as their file has them now.

        Raises:
            ConcordError: the file is missing, or one of these sections has an error.
        """
        if self.params is None:
            return self.settings
        others = {name: part for name, part in self.settings.tree().items() if name not in self.step.sections}
        return load_settings(self.params, {name: json.dumps(part) for name, part in others.items()})

    def raw_input(self) -> "Path | S3Address":
        """Where the raw input is; raises ValueError if its address is malformed."""
        return parse_location(self.data or self.settings.ingest.path)


class Host(Protocol):
    """Where a step runs: on a machine, in a Kubeflow pod, or on a node of a TrainJob."""

    @property
    def lineage(self) -> "Lineage":
        """What the outputs are made from."""

    @property
    def pipeline_run(self) -> str | None:
        """Kubeflow's id of the run, if it belongs to one."""

    @property
    def stores_outputs(self) -> bool:
        """Whether `publish` puts the outputs where equal runs find them, so that training state is no longer needed."""

    def restore(self, outputs: Mapping[str, Path]) -> "CachedOutputs | None":
        """Fetches equal outputs that exist already; None if there are none."""

    def publish(self, run: "StepRun", outputs: Mapping[str, Path], cached: "CachedOutputs | None") -> None:
        """Hands on the finished outputs; `cached` says where they came from if the step did not compute them."""


@dataclass(frozen=True)
class LocalHost:
    """A machine: outputs stay where dvc.yaml says, and `dvc repro` knows what is cached."""

    lineage: "Lineage"
    pipeline_run: str | None = None
    stores_outputs: bool = False

    def restore(self, outputs: Mapping[str, Path]) -> None:
        """Nothing: a person who runs a step wants it to run."""

    def publish(self, run: "StepRun", outputs: Mapping[str, Path], cached: "CachedOutputs | None") -> None:
        """Nothing: `dvc push` is for the user to call."""


def run(call: StepCall) -> int:
    """Runs a step, on as many ranks as the settings ask for. Rank 0 holds the locks and talks to MLflow and the host.

    Returns:
        The exit code: 0, or that of the first rank that failed.

    Raises:
        ConcordError: an input is missing, or the step reports an error; earlier outputs are unchanged.
    """
    step = call.step
    if world_size() > 1 and not step.parallel:
        raise ConcordError(
            f"{step.name}: runs as one process, and {world_size()} were started. Call it without a launcher."
        )
    with local_inputs(call) as inputs:
        check_inputs(call, inputs)
        if rank() > 0:
            compute(call, inputs, call.outputs, None)
            return 0
        host = _host(call, inputs)
        # The launching process, or the head, holds the locks and has looked for cached outputs.
        if started_by_launcher() or NODE_FOLDER in os.environ:
            _run_tracked(call, inputs, host, None)
            return 0
        with output_lock(call.outputs["out"]):
            if cached := _restored(call, host):
                _run_tracked(call, inputs, host, cached)
                return 0
            with _training_lock(call, host.lineage) as waited:
                cached = _restored(call, host) if waited else None
                if not cached and TRAIN_JOB in os.environ:
                    _train_on_nodes(call, inputs, host)
                elif step.parallel and to_launch(call.settings.launcher) and not cached:
                    if code := launch(call.settings.launcher, list(call.words)):
                        return code
                else:
                    _run_tracked(call, inputs, host, cached)
                if host.stores_outputs:
                    _remove_state(call, host.lineage)
    return 0


@contextmanager
def local_inputs(call: StepCall) -> Iterator[dict[str, Path]]:
    """Port name -> path. Raw input in a bucket is fetched, and stays unchanged while the block lasts.

    Raises:
        ConcordError: the address of the raw input is malformed or cannot be read.
    """
    if "data" not in call.step.inputs:
        yield dict(call.inputs)
        return
    try:
        location = call.raw_input()
    except ValueError as error:
        raise ConcordError(f"--data: {error}.") from None
    if isinstance(location, Path):
        yield {"data": location, **call.inputs}
        return
    from components.shared.s3.local_copy import local_copy

    with local_copy(location) as folder:
        yield {"data": folder, **call.inputs}


def check_inputs(call: StepCall, inputs: Mapping[str, Path]) -> None:
    """Raises ConcordError if an input is missing. The remedy fits where the step runs: a pod has no `make`."""
    for port, path in inputs.items():
        if restored(path).exists():
            continue
        if call.kubeflow:
            from components.shared.kubeflow.executor import missing_input

            raise missing_input(call.step, port, path, call.kubeflow.executor_input)
        maker = f"python -m components {port}" if port in STEPS else f"make data, or put the raw input in {path}/"
        raise ConcordError(f"{path}: missing, and {call.step.name} reads it. Make it first: {maker}")


def compute(call: StepCall, inputs: Mapping[str, Path], outputs: Mapping[str, Path], tracked: "StepRun | None") -> None:
    """Calls the step's `run` function."""
    work: Callable[..., None] = importlib.import_module(f"components.{call.step.name}.step").run
    state = {"state": call.state / call.step.name} if call.step.resumes else {}
    work(call.settings, tracked, **inputs, **outputs, **state)


def _host(call: StepCall, inputs: Mapping[str, Path]) -> Host:
    """The host, once the raw input and the model are known to have the hashes that call and settings expect."""
    from components.shared.tracking.model_revision import check_revision

    if call.step.loads_base:
        check_revision(call.settings.model)
    host: Host
    if call.kubeflow:
        from components.shared.kubeflow.task import KubeflowTask

        host = KubeflowTask.of(call.step, call.settings, inputs, call.kubeflow)
    else:
        from components.shared.kubeflow.node import Node, this_node
        from components.shared.tracking.lineage import compute_lineage

        lineage, folder = compute_lineage(call.step, call.settings, inputs), this_node()
        host = Node(lineage, folder) if folder else LocalHost(lineage)
    if call.data_hash is not None and (found := _data_hash(call, host)) != call.data_hash:
        raise ConcordError(
            f"{inputs['data']}: its hash is {found}, and the pipeline's data_hash says {call.data_hash!r}. Give the "
            "hash of the data that data_uri names; otherwise Kubeflow's cache could serve results of other data."
        )
    return host


def _train_on_nodes(call: StepCall, inputs: Mapping[str, Path], host: Host) -> None:
    from components.shared.kubeflow.head import train_job_template, train_on_nodes
    from components.shared.kubeflow.task import KubeflowTask

    if not isinstance(host, KubeflowTask):
        raise ConcordError(f"{TRAIN_JOB} is set, and this is no step of a Kubeflow run. Unset it.")
    train_on_nodes(train_job_template(), call.step, call.settings, inputs, call.outputs, call.state, host)


def _data_hash(call: StepCall, host: Host) -> str:
    """The hash of the raw input, of the kind that the call gives."""
    from components.shared.s3.listing import LISTING
    from components.shared.s3.local_copy import fetched_listing

    location = call.raw_input()
    if str(call.data_hash).startswith(LISTING) and not isinstance(location, Path):
        return fetched_listing(location)
    return host.lineage.inputs["data"].md5


def _restored(call: StepCall, host: Host) -> "CachedOutputs | None":
    """Equal outputs that exist already; not for ranks of another launcher, which must all do the same."""
    return None if "WORLD_SIZE" in os.environ else host.restore(call.outputs)


def _training_lock(call: StepCall, lineage: "Lineage") -> AbstractContextManager[bool]:
    """Keeps a second run of the same training off its training state, which may lie on a volume that machines share.

    Yields whether it waited for another run. Different trainings have separate folders; the lock has the name of the
    folder.
    """
    if not call.step.resumes:
        return nullcontext(False)
    file = call.state / f".{call.step.name}-{lineage.state_name}.lock"
    return work_lock(file, f"the same {call.step.name}, with the same code and settings")


def _remove_state(call: StepCall, lineage: "Lineage") -> None:
    """Removes the state of a training that has ended, for any number of ranks."""
    if call.step.resumes:
        for folder in (call.state / call.step.name).glob(f"{lineage.state_name}*"):
            shutil.rmtree(folder, ignore_errors=True)


def _run_tracked(call: StepCall, inputs: Mapping[str, Path], host: Host, cached: "CachedOutputs | None") -> None:
    from components.shared.tracking.libraries import record
    from components.shared.tracking.step_run import step_run

    step, outputs = call.step, call.outputs
    console.rule(f"[bold]{step.name}[/]  {step.title}", align="left")
    start = time.monotonic()
    with step_run(step, call.settings, inputs, host.lineage, host.pipeline_run) as tracked:
        written = outputs if cached else _unchecked(outputs)
        if not cached:
            compute(call, inputs, written, tracked)
            record(written["out"], host.lineage.libraries)
        tracked.finish(json.loads(metrics_file(written["out"]).read_text(encoding="utf-8")), written)
        if not cached:  # as late as possible, since DVC looks when the process has ended
            _check_unchanged(call, inputs, host.lineage)
            for port, path in outputs.items():
                replace_folder(written[port], path)
        host.publish(tracked, outputs, cached)
    paths = ", ".join(str(path) for path in outputs.values())
    console.print(f"[green]{step.name} done[/] in {time.monotonic() - start:.0f} s: {paths}")


def _unchecked(outputs: Mapping[str, Path]) -> dict[str, Path]:
    """Where outputs wait until nothing that decides them is known to have changed: folders beside them."""
    return {port: path.with_name(f"{path.name}.unchecked") for port, path in outputs.items()}


def _check_bucket(call: StepCall) -> None:
    """Raises ConcordError if raw input in a bucket has changed: DVC takes its ETags after the command has ended."""
    location = call.raw_input()
    if isinstance(location, Path):
        return
    from components.shared.s3.local_copy import check_listing

    check_listing(location)


def _check_unchanged(call: StepCall, inputs: Mapping[str, Path], lineage: "Lineage") -> None:
    """Raises ConcordError if params, inputs or code are not those of the step's start; the earlier outputs stay."""
    from components.shared.tracking.model_revision import check_revision
    from components.shared.tracking.unchanged import changes

    try:
        found = changes(lineage, call.step, call.settings_now(), inputs)
        if call.step.loads_base and not found:
            check_revision(call.settings.model)
        if "data" in call.step.inputs and not found:
            _check_bucket(call)
    except RetryableError:  # whether the bucket has changed is not known
        raise
    except ConcordError as error:  # the file is being edited, or the folder of the model or the bucket has changed
        found = [str(error)]
    if not found:
        return
    kept = ", ".join(str(path) for path in _unchecked(call.outputs).values())
    again = "resumes from its checkpoint and takes what was computed" if call.step.resumes else "computes it again"
    raise ConcordError(
        f"{call.step.name}: changed while the step ran, so the result is not recorded:\n"
        + "".join(f"  {line}\n" for line in found)
        + f"Earlier outputs are unchanged. What was computed from the start's is in {kept} until the next run. Set the "
        f"change back, and that run {again}; or run the step now, from what is there now."
    )
