"""Finds the finished MLflow runs of steps by DVC hash, and reads what they recorded."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from components.errors import ConcordError
from components.shared.tracking.connection import mlflow_errors
from components.shared.tracking.hashes import Content
from components.shared.tracking.lineage import Lineage
from components.shared.tracking.step_run import StepRun
from components.shared.tracking.tags import (
    COMMIT,
    DIRTY,
    INPUT,
    LINEAGE,
    OUTPUT,
    PARENT,
    PIPELINE_RUN,
    REMOTE,
    REUSED,
    STEP,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


@dataclass(frozen=True)
class RunRecord:
    """What the MLflow run of a step recorded about itself.

    Attributes:
        run_id: MLflow's id.
        commit: git commit of its code, or `none`.
        dirty: whether the working tree had uncommitted changes.
        reused: source of the outputs if they were fetched from the cache; empty if the run computed them.
        lineage: inputs, code and params of the outputs.
        outputs: port name -> content.
        remote: address of the DVC remote that has the outputs; empty if the run pushed them nowhere.
    """

    run_id: str
    commit: str
    dirty: bool
    reused: str
    lineage: Lineage
    outputs: Mapping[str, Content]
    remote: str = ""


def read_record(client: "MlflowClient", run: "Run") -> RunRecord:
    """Reads the record of a step's run from its tags and its lineage artifact.

    Raises:
        ConcordError: the store cannot be reached; the run has no lineage artifact, because it is no step's run or an
            earlier version of the step wrote it; or the artifact is damaged.
    """
    with mlflow_errors(f"read {LINEAGE} of run {run.info.run_id}"), tempfile.TemporaryDirectory() as folder:
        data = Path(client.download_artifacts(run.info.run_id, LINEAGE, folder)).read_bytes()
    try:
        content = json.loads(data)
        outputs = {port: Content(**output) for port, output in content["outputs"].items()}
        lineage = Lineage.from_json(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConcordError(
            f"MLflow run {run.info.run_id}: its artifact {LINEAGE} is damaged ({error}). Run the step again; with the "
            "same inputs, code and settings it gives the same outputs."
        ) from None
    tags = run.data.tags
    dirty, reused = tags.get(DIRTY) == "true", tags.get(REUSED, "")
    commit, remote = tags.get(COMMIT, "none"), tags.get(REMOTE, "")
    return RunRecord(run.info.run_id, commit, dirty, reused, lineage, outputs, remote)


def find_producer(client: "MlflowClient", experiment_id: str, digest: str) -> str | None:
    """Returns the id of the newest finished run of the experiment whose output `out` has this DVC hash.

    A run that computed the output is preferred to one that fetched it from the cache.
    """
    runs = client.search_runs(
        [experiment_id],
        f"tags.`{OUTPUT}out` = '{digest}' and attributes.status = 'FINISHED'",
        max_results=100,
        order_by=["attributes.start_time DESC"],
    )
    return _prefer_computed(runs)


def find_producer_in_pipeline(track: StepRun, step: str, digest: str) -> str | None:
    """Returns the id of the run of `step` that gave `track` its input with this DVC hash.

    This is the newest finished run of the step under the same parent with that output. A run that only fetched the
    output counts too: it names the settings and the commit of this pipeline run. Without such a run (Kubeflow served
    the task from its own cache, or another experiment ran the step), `find_producer` decides.
    """
    parent = track.parent_id or track.client.get_run(track.run_id).data.tags.get(PARENT)
    if parent is not None:
        siblings = track.client.search_runs(
            [track.experiment_id],
            f"tags.`{PARENT}` = '{parent}' and tags.`{STEP}` = '{step}' and tags.`{OUTPUT}out` = '{digest}' "
            "and attributes.status = 'FINISHED'",
            max_results=1,
            order_by=["attributes.start_time DESC"],
        )
        if siblings:
            return str(siblings[0].info.run_id)
    return find_producer(track.client, track.experiment_id, digest)


def find_consumer(client: "MlflowClient", step: str, port: str, digest: str) -> str | None:
    """Returns the id of the newest finished run of a step, in any experiment, whose input `port` has this DVC hash.

    A run that computed its outputs is preferred to one that fetched them and so never read the input.
    """
    runs = client.search_runs(
        [experiment.experiment_id for experiment in client.search_experiments()],
        f"tags.`{STEP}` = '{step}' and tags.`{INPUT}{port}` = '{digest}' and attributes.status = 'FINISHED'",
        max_results=100,
        order_by=["attributes.start_time DESC"],
    )
    return _prefer_computed(runs)


def close_runs_of(client: "MlflowClient", pipeline_run: str, status: str) -> int:
    """Gives a status to all runs of a pipeline run that are still RUNNING; returns their number.

    Args:
        pipeline_run: Kubeflow's id of a run that has ended.
        status: FAILED or KILLED.

    Raises:
        ConcordError: the store cannot be reached.
    """
    query = f"tags.`{PIPELINE_RUN}` = '{pipeline_run}' and attributes.status = 'RUNNING'"
    with mlflow_errors(f"close the runs of {pipeline_run}"):
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        left = client.search_runs(experiments, query) if experiments else []
        for run in left:
            client.set_terminated(run.info.run_id, status)
    return len(left)


def _prefer_computed(runs: "Sequence[Run]") -> str | None:
    """The first run that computed its outputs, else the first run."""
    computed = [run for run in runs if REUSED not in run.data.tags] or list(runs)
    return computed[0].info.run_id if computed else None
