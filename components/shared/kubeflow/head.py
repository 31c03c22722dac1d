"""The head of a training on several nodes: the step's pod makes a TrainJob, follows it, and publishes its outputs.

The head cannot tell whether its pod is deleted to be replaced, or because the run was ended. So it leaves the TrainJob
alone when it is stopped. A new head follows the TrainJob that it finds; without one, the nodes notice that nobody
renews the lease, write a checkpoint and end.
"""

import json
import os
import shutil
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from components.console import console
from components.errors import ConcordError, RetryableError
from components.settings import Settings
from components.shared.io.atomic import replace_folder
from components.shared.io.progress import lines_elsewhere
from components.shared.kubeflow.kubernetes_api import POD_NAMESPACE, connect_kubernetes
from components.shared.kubeflow.names import NODE_FOLDER, REUSE, RUN_ID, TRAIN_JOB
from components.shared.kubeflow.node_folder import LEASE_SECONDS, NodeFolder, Result, node_folder
from components.shared.kubeflow.pod_reasons import pod_reasons
from components.shared.kubeflow.task import KubeflowTask
from components.shared.kubeflow.train_job import NODE, POLL_SECONDS, TrainJob, ended
from components.shared.tracking.hashes import dvc_content
from components.steps import Step

WAIT_SECONDS = 60.0  # a pod that waits longer is reported with its reason
# Kubeflow's MLflow plugin sets them in the step's pod; elsewhere they come from secrets, by reference.
_PLUGIN = ("MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_ID")


def train_job_template() -> Any:
    """The TrainJob that the pipeline was compiled with, without its name; None for a step on one node.

    Raises:
        ConcordError: the variable has something else.
    """
    value = os.environ.get(TRAIN_JOB)
    if not value:
        return None
    try:
        template = json.loads(value)
        template["spec"]["trainer"]["env"] += []
        return template
    except (ValueError, TypeError, KeyError):
        raise ConcordError(f"{TRAIN_JOB}: not what `pipelines compile` writes. Unset it.") from None


def train_on_nodes(
    template: Any,
    step: Step,
    settings: Settings,
    inputs: Mapping[str, Path],
    outputs: Mapping[str, Path],
    state: Path,
    host: KubeflowTask,
) -> None:
    """Trains on the nodes of a TrainJob, and publishes as the step itself would.

    Args:
        template: of the TrainJob.
        step, settings: what to run.
        inputs, outputs: port name -> path in this pod.
        state: where the volume for training state is mounted, here and on the nodes.
        host: publishes the outputs.

    Raises:
        RetryableError: the TrainJob failed or was deleted; another one resumes from the checkpoint.
        ConcordError: the nodes reported an error, the cluster refuses, or the outputs are not what rank 0 wrote.
    """
    folder = node_folder(state, host.lineage)
    job = TrainJob(connect_kubernetes(_namespace()), f"concord-{folder.path.name}")
    with folder.renewed_lease():
        result = _result_before(folder, host)
        if result is None:
            paths = folder.take_inputs(inputs, host.lineage.inputs)
            _start(job, folder, _filled(template, folder, _words(step, settings, folder, paths, state)))
            with lines_elsewhere():
                _follow(job, folder, step)
            result = folder.result(host.lineage)
        if result is None:
            raise RetryableError(f"TrainJob {job.name} has ended, and {folder.path} has no outputs of it.")
        _take_outputs(folder, result, outputs)
        _publish(result, outputs, host)
        with suppress(ConcordError):  # it has ended, and Kubernetes shows it until somebody deletes it
            job.delete()
    if host.stores_outputs:
        folder.remove()


def _result_before(folder: NodeFolder, host: KubeflowTask) -> Result | None:
    """The result that an earlier head did not publish; an earlier run's counts unless everything is computed again."""
    result = folder.result(host.lineage)
    if result and os.environ.get(REUSE) == "off" and result.pipeline_run != host.pipeline_run:
        return None
    return result


def _namespace() -> str | None:
    return POD_NAMESPACE.read_text(encoding="ascii").strip() if POD_NAMESPACE.exists() else None


def _words(step: Step, settings: Settings, folder: NodeFolder, inputs: Mapping[str, Path], state: Path) -> list[str]:
    """The step's command line on a node, after `python -m components`."""
    ports = {**inputs, **{port: folder.output(port) for port in step.outputs}}
    words = step.command(paths={port: str(path) for port, path in ports.items()})[3:]
    tree = settings.tree()
    for section in ("experiment", *step.sections):
        words += ["--section", section, json.dumps(tree[section])]
    return [*words, "--state", str(state)]


def _filled(template: Any, folder: NodeFolder, words: list[str]) -> Any:
    """The TrainJob with the arguments and variables of this run."""
    trainer = template["spec"]["trainer"]
    variables = {NODE_FOLDER: str(folder.path), RUN_ID: os.environ.get(RUN_ID, "")}
    if os.environ.get("MLFLOW_RUN_ID"):
        variables |= {name: os.environ[name] for name in _PLUGIN if name in os.environ}
    known = {variable["name"] for variable in trainer["env"]}
    env = [*trainer["env"], *({"name": k, "value": v} for k, v in variables.items() if v and k not in known)]
    return {**template, "spec": {**template["spec"], "trainer": {**trainer, "args": words, "env": env}}}


def _start(job: TrainJob, folder: NodeFolder, content: Any) -> None:
    """Makes the TrainJob, unless one of this training is at work."""
    there = job.get()
    if there and not ended(there) and not folder.is_abandoned() and not there["metadata"].get("deletionTimestamp"):
        console.print(f"following TrainJob {job.name}, which an earlier pod of the step has made", soft_wrap=True)
        return
    if there:
        job.delete()
    job.wait_until_gone()  # somebody may have deleted it just now
    folder.begin()
    job.create(content)
    nodes = content["spec"]["trainer"]["numNodes"]
    console.print(f"made TrainJob {job.name}: {nodes} nodes, runtime {content['spec']['runtimeRef']['name']}")


def _follow(job: TrainJob, folder: NodeFolder, step: Step) -> None:
    """Waits until the TrainJob is complete; prints rank 0's log, and why pods wait."""
    done = threading.Event()
    threading.Thread(target=_print_log, args=(job, done), daemon=True, name="rank-0-log").start()
    reported: set[str] = set()
    began = reached = time.monotonic()
    try:
        while True:
            try:
                there = job.get()
                if time.monotonic() - began > WAIT_SECONDS:
                    _report_pods(job, step, reported)
                reached = time.monotonic()
            except RetryableError as error:  # the API server may be back soon
                if time.monotonic() - reached > LEASE_SECONDS:
                    raise
                console.print(f"[yellow]warning[/] {error}", soft_wrap=True)
                time.sleep(10 * POLL_SECONDS)
                continue
            if _has_ended(job, folder, there):
                return
            time.sleep(POLL_SECONDS)
    finally:
        done.set()


def _has_ended(job: TrainJob, folder: NodeFolder, there: Any) -> bool:
    """Whether the TrainJob is complete; raises ConcordError if it failed."""
    if message := folder.failure:
        with suppress(RetryableError):  # its pods may take long to end; the error is the one to report
            job.delete()
        raise ConcordError(message)
    if folder.is_abandoned():
        raise RetryableError(f"TrainJob {job.name} ended, since the lease in {folder.path} was not renewed.")
    if there is None:
        raise RetryableError(f"TrainJob {job.name} was deleted by somebody. Another one resumes from the checkpoint.")
    end = ended(there)
    if end and end[0] == "Failed":
        raise RetryableError(f"TrainJob {job.name} failed: {end[1]}. Another one resumes from the checkpoint.")
    return end is not None


def _report_pods(job: TrainJob, step: Step, reported: set[str]) -> None:
    """Prints each reason why a pod waits or has failed once."""
    for pod in job.pods():
        for reason in pod_reasons(step.name, pod):
            line = f"{pod['metadata']['name']}: {reason}"
            if line not in reported:
                reported.add(line)
                console.print(line, soft_wrap=True, markup=False)


def _print_log(job: TrainJob, done: threading.Event) -> None:
    """Prints the log of rank 0's pod, and of the pod that replaces it, until the training has ended."""
    printed: dict[str, int] = {}
    while not done.is_set():
        with suppress(ConcordError, LookupError):  # what is wrong is reported by `_follow`
            if pod := job.first_pod():
                path = f"{job.kubernetes.path('pods')}/{pod}/log"
                for number, line in enumerate(job.kubernetes.lines(path, container=NODE, follow="true")):
                    if number >= printed.get(pod, 0):  # the server ends long requests, and the log is read again
                        console.print(line, soft_wrap=True, markup=False, highlight=False)
                        printed[pod] = number + 1
        done.wait(POLL_SECONDS)


def _take_outputs(folder: NodeFolder, result: Result, outputs: Mapping[str, Path]) -> None:
    """Copies the outputs from the volume to this pod, and compares their hashes with those that rank 0 computed."""
    for port, path in outputs.items():
        partial = path.with_name(f"{path.name}.unchecked")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(folder.output(port), partial, copy_function=shutil.copyfile)
        if dvc_content(partial) != result.outputs[port]:
            raise ConcordError(
                f"{folder.output(port)}: is not what rank 0 wrote there. Remove {folder.path} on the volume, and run "
                "the step again: it resumes from its checkpoint."
            )
        replace_folder(partial, path)


def _publish(result: Result, outputs: Mapping[str, Path], host: KubeflowTask) -> None:
    from components.shared.tracking.step_run import finished_run

    run = finished_run(result.run_id, result.commit, result.dirty, host.lineage, result.outputs, host.pipeline_run)
    host.publish(run, outputs, None)
