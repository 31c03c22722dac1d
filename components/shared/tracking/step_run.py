"""MLflow runs: one parent for an experiment, one nested run for each step, tied to data by DVC hashes.

The stages of one `dvc repro` are processes of their own, and still share a parent: it is found again by the fingerprint
of the settings. A platform that opens the run itself (Kubeflow does) hands it over as MLFLOW_RUN_ID.
"""

import getpass
import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.console import console
from components.errors import ConcordError
from components.settings import UNDECISIVE, Settings
from components.shared.io.secrets import masked
from components.shared.tracking.connection import connect, mlflow_errors
from components.shared.tracking.hashes import Content, dvc_content
from components.shared.tracking.lineage import Lineage, fingerprint, lineage_of
from components.steps import Step

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

FINGERPRINT = "concord.fingerprint"
KIND = "concord.kind"
STEP = "concord.step"
INPUT = "concord.in."
OUTPUT = "concord.out."
KEY = "concord.key"  # of the lineage: equal for runs that make the same from the same
CODE_MARK = "concord.code"
PIPELINE_RUN = "concord.pipeline_run"  # Kubeflow's id, on the parent and on every step
REUSED = "concord.reused"  # what told of the outputs that were fetched in place of computing them
REMOTE = "concord.remote"  # the DVC remote that has the outputs
PARENT = "mlflow.parentRunId"
COMMIT_TAG = "mlflow.source.git.commit"
DIRTY = "concord.git.dirty"
LINEAGE = "lineage.json"  # artifact: what dvc.lock needs, of inputs, code, params and outputs

FLUSH_SECONDS = 5.0  # one batch costs some 20 ms, whether it holds one metric or a hundred
RETRY_SECONDS = 30.0
BATCH = 1000  # MLflow's limit
PARAM_BATCH = 100  # likewise
TEXT_LIMIT = 5000  # of a tag; a param's is 6000


def flat(content: Mapping[str, Any] | Sequence[Any], prefix: str = "") -> dict[str, Any]:
    """Leaves by dotted key: `{"a": {"b": [1, 2]}}` -> `{"a.b.0": 1, "a.b.1": 2}`."""
    pairs = content.items() if isinstance(content, Mapping) else enumerate(content)
    leaves: dict[str, Any] = {}
    for key, value in pairs:
        name = f"{prefix}{key}"
        if isinstance(value, Mapping | list | tuple):
            leaves |= flat(value, f"{name}.")
        else:
            leaves[name] = value
    return leaves


class StepRun:
    """The MLflow run of one step.

    Attributes:
        run_id: of this step's run.
        parent_id: of the experiment's run; None where a platform nested this run in one of its own.
        experiment_id: MLflow's experiment.
        client: for steps that write more than metrics (register).
        commit: the git commit that the code is at, or `none`.
        dirty: whether there were changes besides.
        pipeline_run: Kubeflow's id; None elsewhere.
        inputs: port name -> DVC hash.
        lineage: what the outputs are made from.
        outputs: port name -> content; empty before `finish`.
    """

    def __init__(
        self,
        client: "MlflowClient",
        run: "Run",
        parent_id: str | None,
        commit: str,
        lineage: Lineage,
        dirty: bool = False,
        pipeline_run: str | None = None,
    ) -> None:
        """Wraps a run that is open already; `step_run` opens it."""
        self.client = client
        self.run_id: str = run.info.run_id
        self.experiment_id: str = run.info.experiment_id
        self.parent_id = parent_id
        self.commit = commit
        self.dirty = dirty
        self.pipeline_run = pipeline_run
        self.lineage = lineage
        self.inputs = {port: content.md5 for port, content in lineage.inputs.items()}
        self.outputs: dict[str, Content] = {}
        self._pending: list[Metric] = []
        self._next_flush = time.monotonic() + FLUSH_SECONDS

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Adds a point to each curve.

        Cheap enough for every training step: points are kept and sent together every few seconds. A store that is away
        does not stop a training: the points wait, and `finish` insists on them.
        """
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._pending += [Metric(_metric_name(name), float(value), now, step) for name, value in metrics.items()]
        if time.monotonic() >= self._next_flush:
            self._flush_if_possible()

    def finish(self, metrics: Mapping[str, Any], outputs: Mapping[str, Path]) -> None:
        """Writes the step's final metrics, flattened with dots, and the DVC hashes of what it made.

        Args:
            metrics: numbers, nested or not; None is left out.
            outputs: port name -> path.

        Raises:
            ConcordError: the store is away. The step's outputs are whole, and running it again is enough.
            TypeError: a metric is no number.
        """
        found = {name: value for name, value in flat(metrics).items() if value is not None}
        for name, value in found.items():
            if not isinstance(value, int | float):
                raise TypeError(f"metric {name} is {value!r}, not a number")
        self.log(found, step=0)
        self.outputs = {port: dvc_content(path) for port, path in outputs.items()}
        with mlflow_errors(f"write the metrics of run {self.run_id}"):
            self._flush()
            for port, content in self.outputs.items():
                self.client.set_tag(self.run_id, f"{OUTPUT}{port}", content.md5)
        self.write_lineage()

    def write_lineage(self) -> None:
        """Puts beside the run what it is made from, and what it has made so far.

        Raises:
            ConcordError: the store, or its place for artifacts, is away.
        """
        made = {port: content.to_json() for port, content in self.outputs.items()}
        with mlflow_errors(f"store the lineage of run {self.run_id}"):
            self.client.log_dict(self.run_id, {**self.lineage.to_json(), "outputs": made}, LINEAGE)

    def tag(self, name: str, value: str) -> None:
        """Sets a tag of the run.

        Raises:
            ConcordError: the store is away.
        """
        with mlflow_errors(f"tag run {self.run_id}"):
            self.client.set_tag(self.run_id, name, masked(value)[:TEXT_LIMIT])

    def attach(self, folder: Path, name: str) -> None:
        """Puts a folder's files beside the run as artifacts, below `name`: what a person wants to see in the UI.

        Raises:
            ConcordError: the store is away.
        """
        with mlflow_errors(f"store {folder} with run {self.run_id}"):
            self.client.log_artifacts(self.run_id, str(folder), name)

    def _flush_if_possible(self) -> None:
        try:
            with mlflow_errors("write metrics"):
                self._flush()
            self._next_flush = time.monotonic() + FLUSH_SECONDS
        except ConcordError as error:
            console.print(f"[yellow]warning[/] {error} The step goes on; tried again in {RETRY_SECONDS:.0f} s.")
            self._next_flush = time.monotonic() + RETRY_SECONDS

    def _flush(self) -> None:
        while self._pending:
            self.client.log_batch(self.run_id, metrics=self._pending[:BATCH])
            del self._pending[:BATCH]


@contextmanager
def step_run(
    step: Step,
    settings: Settings,
    inputs: Mapping[str, Path],
    lineage: Lineage | None = None,
    pipeline_run: str | None = None,
) -> Iterator[StepRun]:
    """Opens the step's run, below the experiment's, and closes it as FINISHED, FAILED or KILLED.

    Where it stands: MLFLOW_TRACKING_URI, else mlflow.db in the working directory. With MLFLOW_RUN_ID, that run is the
    parent; if it is nested itself, the step writes straight into it.

    Args:
        step: from the step table; its settings sections become the run's params.
        settings: the whole experiment; decides which parent it is.
        inputs: port name -> path; their DVC hashes become tags and dataset inputs.
        lineage: of this very run, where it is known already; hashing large inputs takes its time.
        pipeline_run: Kubeflow's id of the run; all its steps share one parent, whatever settings each of them sees.

    Raises:
        ConcordError: the store cannot be reached, or MLFLOW_RUN_ID names no run in it.
    """
    client = connect()
    lineage = lineage or lineage_of(step, settings, inputs)
    hashes = {port: content.md5 for port, content in lineage.inputs.items()}
    commit, dirty = _git()
    tags = {
        STEP: step.name,
        "mlflow.runName": step.name,
        "mlflow.user": _user(),
        "mlflow.source.name": f"python -m components {step.name}",
        "mlflow.source.type": "LOCAL",
        COMMIT_TAG: commit,
        DIRTY: str(dirty).lower(),
        "concord.ranks": os.environ.get("WORLD_SIZE", "1"),
        CODE_MARK: lineage.code_mark,
        **({KEY: lineage.key} if lineage.key else {}),
        **({PIPELINE_RUN: pipeline_run} if pipeline_run else {}),
    } | {f"{INPUT}{port}": value for port, value in hashes.items()}
    with mlflow_errors(f"open the run of step {step.name}"):
        run, parent, owned = _open(client, step, settings, tags)
        _describe(client, run, step, settings, inputs, hashes)
    tracked = StepRun(client, run, parent, commit, lineage, dirty, pipeline_run)
    try:
        tracked.write_lineage()  # now: hours of training are no time to learn that artifacts have no place
        yield tracked
    except BaseException as error:
        killed = isinstance(error, KeyboardInterrupt | SystemExit)
        with suppress(Exception):  # the first error is the one to tell
            client.set_tag(tracked.run_id, "concord.error", masked(f"{type(error).__name__}: {error}")[:TEXT_LIMIT])
            tracked._flush()
            _close(client, tracked, owned, "KILLED" if killed else "FAILED")
        raise
    with mlflow_errors(f"close run {tracked.run_id}"):
        tracked._flush()
        _close(client, tracked, owned, "FINISHED")


@dataclass(frozen=True)
class Record:
    """What a step's run has left about itself.

    Attributes:
        run_id: MLflow's.
        commit: of its code, or `none`.
        dirty: whether the working tree had changes.
        reused: what told of the outputs, where they were fetched and not computed; else empty.
        lineage: what the outputs were made from.
        outputs: port name -> content.
        remote: address of the DVC remote that has the outputs; empty where the run pushed them to none.
    """

    run_id: str
    commit: str
    dirty: bool
    reused: str
    lineage: Lineage
    outputs: Mapping[str, Content]
    remote: str = ""


def record_of(client: "MlflowClient", run: "Run") -> Record:
    """The record of a step's run.

    Raises:
        ConcordError: the store is away; the run has none, since a step of an earlier version wrote it, or no step; or
            what it has is damaged.
    """
    with mlflow_errors(f"read {LINEAGE} of run {run.info.run_id}"), tempfile.TemporaryDirectory() as folder:
        kept = Path(client.download_artifacts(run.info.run_id, LINEAGE, folder)).read_bytes()
    try:
        content = json.loads(kept)
        outputs = {port: Content(**made) for port, made in content["outputs"].items()}
        lineage = Lineage.from_json(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConcordError(
            f"MLflow run {run.info.run_id}: its artifact {LINEAGE} is not what a step writes ({error}). Run the step "
            "again; where it takes the same inputs, code and settings, it makes the same."
        ) from None
    tags = run.data.tags
    dirty, reused = tags.get(DIRTY) == "true", tags.get(REUSED, "")
    commit, remote = tags.get(COMMIT_TAG, "none"), tags.get(REMOTE, "")
    return Record(run.info.run_id, commit, dirty, reused, lineage, outputs, remote)


def run_that_made(client: "MlflowClient", experiment_id: str, digest: str) -> str | None:
    """The newest finished step run whose `out` has this DVC hash: how an output leads back to its run.

    One that only fetched it counts where no run is known that computed it.
    """
    found = client.search_runs(
        [experiment_id],
        f"tags.`{OUTPUT}out` = '{digest}' and attributes.status = 'FINISHED'",
        max_results=100,
        order_by=["attributes.start_time DESC"],
    )
    return _computed_first(found)


def run_that_gave(track: StepRun, step: str, digest: str) -> str | None:
    """The run of `step` from which `track` has an input with this DVC hash.

    That is the newest finished one below the same parent whose `out` it is, also where it only fetched that: it says
    with which settings and at which commit this very pipeline run got it. Where there is none, Kubeflow has taken the
    task from its own cache, or the step belongs to another experiment's run; then see `run_that_made`.
    """
    parent = track.parent_id or track.client.get_run(track.run_id).data.tags.get(PARENT)
    if parent is not None:
        below = track.client.search_runs(
            [track.experiment_id],
            f"tags.`{PARENT}` = '{parent}' and tags.`{STEP}` = '{step}' and tags.`{OUTPUT}out` = '{digest}' "
            "and attributes.status = 'FINISHED'",
            max_results=1,
            order_by=["attributes.start_time DESC"],
        )
        if below:
            return str(below[0].info.run_id)
    return run_that_made(track.client, track.experiment_id, digest)


def run_that_read(client: "MlflowClient", step: str, port: str, digest: str) -> str | None:
    """The newest finished run of a step, in any experiment, whose input `port` has this DVC hash.

    One that only fetched its outputs has read nothing, and counts where no other is known.
    """
    found = client.search_runs(
        [experiment.experiment_id for experiment in client.search_experiments()],
        f"tags.`{STEP}` = '{step}' and tags.`{INPUT}{port}` = '{digest}' and attributes.status = 'FINISHED'",
        max_results=100,
        order_by=["attributes.start_time DESC"],
    )
    return _computed_first(found)


def _computed_first(found: "Sequence[Run]") -> str | None:
    """The first that computed its outputs, else the first."""
    computed = [run for run in found if REUSED not in run.data.tags] or list(found)
    return computed[0].info.run_id if computed else None


def _open(
    client: "MlflowClient", step: Step, settings: Settings, tags: Mapping[str, str]
) -> tuple["Run", str | None, bool]:
    """The step's run, its parent's id, and whether the parent's status is ours to set."""
    given, pipeline_run = _given_run(client), tags.get(PIPELINE_RUN)
    if given and pipeline_run:  # `pipelines lock` finds the run by either id
        top = given.data.tags.get(PARENT, given.info.run_id)
        client.set_tag(top, PIPELINE_RUN, pipeline_run)
    if given and PARENT in given.data.tags:
        for name, value in tags.items():
            if not name.startswith("mlflow."):  # the platform's name, user and source stay
                client.set_tag(given.info.run_id, name, value)
        client.set_tag(given.info.run_id, COMMIT_TAG, tags[COMMIT_TAG])
        client.update_run(given.info.run_id, status="RUNNING")
        return given, None, False
    if given:
        parent = given
    elif pipeline_run:
        parent = _pipeline_run(client, step, settings, pipeline_run)
    else:
        parent = _experiment_run(client, settings)
    parent_id = parent.info.run_id
    left = client.search_runs(
        [parent.info.experiment_id],
        f"tags.`{PARENT}` = '{parent_id}' and tags.`{STEP}` = '{step.name}' and attributes.status = 'RUNNING'",
    )
    for run in left:
        client.set_terminated(run.info.run_id, "KILLED")
    if not given:
        client.update_run(parent_id, status="RUNNING")
    run = client.create_run(parent.info.experiment_id, tags={PARENT: parent_id, **tags})
    return run, parent_id, given is None


def _given_run(client: "MlflowClient") -> "Run | None":
    from mlflow.exceptions import MlflowException

    run_id = os.environ.get("MLFLOW_RUN_ID")
    if not run_id:
        return None
    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise ConcordError(
            f"MLFLOW_RUN_ID={run_id}: no such run at {masked(client.tracking_uri)}. "
            "Unset it, or set MLFLOW_TRACKING_URI to the store that holds it."
        ) from None


def _experiment_run(client: "MlflowClient", settings: Settings) -> "Run":
    """The parent of every step with these settings; made where there is none."""
    experiment_id = _experiment(client, settings.experiment)
    tree = {name: content for name, content in settings.tree().items() if name not in UNDECISIVE}
    mark = fingerprint(tree)
    marks = {FINGERPRINT: mark, KIND: "experiment"}
    parent, made = _shared_run(client, experiment_id, f"{settings.experiment} {mark[:6]}", marks)
    if made:
        _log_params(client, parent, tree)
    return parent


def _pipeline_run(client: "MlflowClient", step: Step, settings: Settings, pipeline_run: str) -> "Run":
    """The parent of every step of one run of the pipeline; made where there is none.

    A step's container has the settings of its own sections alone, so each step adds those to the parent.
    """
    marks = {PIPELINE_RUN: pipeline_run, KIND: "pipeline"}
    name = f"{settings.experiment} {pipeline_run[:8]}"
    parent, _ = _shared_run(client, _experiment(client, settings.experiment), name, marks)
    tree = settings.tree()
    _log_params(client, parent, {section: tree[section] for section in step.sections})
    return parent


def _shared_run(client: "MlflowClient", experiment_id: str, name: str, marks: Mapping[str, str]) -> tuple["Run", bool]:
    """The oldest run with these tags, and whether it was made just now. Two steps that start at once take the same."""
    query = " and ".join(f"tags.`{tag}` = '{value}'" for tag, value in marks.items())
    found = client.search_runs([experiment_id], query, max_results=1, order_by=["attributes.start_time ASC"])
    if found:
        return found[0], False
    made = client.create_run(experiment_id, run_name=name, tags={**marks, "mlflow.user": _user()})
    first = min(client.search_runs([experiment_id], query), key=lambda run: (run.info.start_time, run.info.run_id))
    if first.info.run_id != made.info.run_id:
        client.delete_run(made.info.run_id)
        return first, False
    return made, True


def _experiment(client: "MlflowClient", name: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)  # another step made it in the meantime
    if found is None or found.lifecycle_stage != "active":
        known = f"mlflow experiments restore --experiment-id {found.experiment_id}" if found else "make ui"
        raise ConcordError(
            f"params.yaml: experiment: {name} was deleted in MLflow. Bring it back ({known}) or choose another name."
        )
    return str(found.experiment_id)


def _describe(
    client: "MlflowClient",
    run: "Run",
    step: Step,
    settings: Settings,
    inputs: Mapping[str, Path],
    hashes: Mapping[str, str],
) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    tree = settings.tree()
    _log_params(client, run, {section: tree[section] for section in step.sections})
    datasets = [
        DatasetInput(
            Dataset(name=port, digest=digest, source_type="local", source=json.dumps({"uri": str(inputs[port])})),
            tags=[InputTag("mlflow.data.context", step.name)],
        )
        for port, digest in hashes.items()
    ]
    client.log_inputs(run.info.run_id, datasets)


def _log_params(client: "MlflowClient", run: "Run", tree: Mapping[str, Any]) -> None:
    from mlflow.entities import Param

    params = {
        name: masked(value if isinstance(value, str) else json.dumps(value))[:TEXT_LIMIT]
        for name, value in flat(tree).items()
    }
    held = run.data.params  # a platform's run that is tried again has them already, and MLflow lets none be changed
    for name, value in params.items():
        if held.get(name, value) != value:
            raise ConcordError(
                f"MLflow run {run.info.run_id}: already has {name}={held[name]}, and params.yaml says {value}. "
                "A run keeps its settings: unset MLFLOW_RUN_ID or give a new run."
            )
    new = [Param(name, value) for name, value in params.items() if name not in held]
    for start in range(0, len(new), PARAM_BATCH):
        client.log_batch(run.info.run_id, params=new[start : start + PARAM_BATCH])


def _close(client: "MlflowClient", tracked: StepRun, owned: bool, status: str) -> None:
    client.set_terminated(tracked.run_id, status)
    if owned and tracked.parent_id:
        client.set_terminated(tracked.parent_id, status)


def _metric_name(name: str) -> str:
    return re.sub(r"[^\w\-. :/]", "_", name)[:250]


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())


def _git() -> tuple[str, bool]:
    """Commit of the working directory and whether it has changes; `none` where there is no repository or no commit.

    An image has no repository, and says in CONCORD_COMMIT what it was built from.
    """
    if built := os.environ.get("CONCORD_COMMIT"):
        return built.removesuffix("-dirty"), built.endswith("-dirty")

    def git(*words: str) -> str:
        run = subprocess.run(["git", *words], capture_output=True, text=True, timeout=20, check=False)
        return run.stdout.strip() if run.returncode == 0 else ""

    try:
        commit = git("rev-parse", "HEAD")
        return commit or "none", bool(commit and git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.TimeoutExpired):
        return "none", False
