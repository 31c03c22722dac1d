"""Opens and closes the MLflow run of a step, nested in one parent run for each experiment.

Each stage of a `dvc repro` is a process of its own; all stages find their common parent by the fingerprint of the
settings. A platform that opens the run itself passes its id in MLFLOW_RUN_ID.
"""

import getpass
import json
import os
import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.console import console
from components.errors import ConcordError
from components.settings import WITHOUT_EFFECT, Settings
from components.shared.io.secrets import masked, masked_json
from components.shared.tracking.connection import (
    connect,
    correct_paths,
    local_artifacts,
    mlflow_errors,
    store_lock,
)
from components.shared.tracking.flatten import flatten, split_curves
from components.shared.tracking.hashes import Content, dvc_content
from components.shared.tracking.lineage import Lineage, compute_lineage, fingerprint
from components.shared.tracking.metric_writer import MetricWriter, done_within
from components.shared.tracking.open_runs import announce
from components.shared.tracking.tags import (
    CODE,
    COMMIT,
    DIRTY,
    ERROR,
    FINGERPRINT,
    INPUT,
    KEY,
    KIND,
    LINEAGE,
    OUTPUT,
    PARENT,
    PIPELINE_RUN,
    STEP,
)
from components.steps import Step

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

CLOSE_SECONDS = 20.0  # in which the run of a step that failed or was stopped is closed; a pod gets 30 to end
PARAM_BATCH = 100  # MLflow's limit
_WITHOUT_EFFECT = tuple(f":(top,exclude){path}" for path in ("dvc.lock", "*.md", "results", "tests"))
TEXT_LIMIT = 5000  # MLflow's limit for a tag; a param may have 6000


class StepRun:
    """The MLflow run of one step.

    Attributes:
        run_id: id of this step's run.
        parent_id: id of the experiment's run; None if a platform nested this run in one of its own.
        experiment_id: id of MLflow's experiment.
        client: for steps that write more than metrics (register).
        commit: git commit of the code, or `none`.
        dirty: whether the working tree has uncommitted changes.
        pipeline_run: Kubeflow's run id; None outside Kubeflow.
        inputs: port name -> DVC hash.
        lineage: inputs, code and params of the outputs.
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
        """Wraps an open run; `step_run` opens one."""
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
        self._writer = MetricWriter(client, self.run_id)

    def closed_with(self, owned: bool) -> list[str]:
        """The ids of the runs whose status this process sets: its own, and its parent's if that is `owned`."""
        return [self.run_id, *([self.parent_id] if owned and self.parent_id else [])]

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Adds one point to the curve of each metric.

        Cheap enough for every training step: points are buffered, and a thread sends them every few seconds. If the
        store cannot be reached, training continues at the same speed and the points stay buffered; `finish` raises if
        it cannot write them.
        """
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._writer.add([Metric(_metric_name(name), float(value), now, step) for name, value in metrics.items()])

    def finish(self, metrics: Mapping[str, Any], outputs: Mapping[str, Path]) -> None:
        """Writes the step's final metrics, with dotted keys, and the DVC hashes of its outputs.

        Args:
            metrics: numbers, nested or not; None values are skipped. Text becomes a tag. A list of mappings is a curve:
                its points are logged at the steps 0, 1, ...
            outputs: port name -> path.

        Raises:
            ConcordError: the store cannot be reached. The step's outputs are complete; run the step again.
            TypeError: a metric is neither a number nor text.
        """
        figures, curves = split_curves(metrics)
        values = {name: value for name, value in flatten(figures).items() if value is not None}
        texts = {name: value for name, value in values.items() if isinstance(value, str)}
        numbers = {name: value for name, value in values.items() if name not in texts}
        for name, value in numbers.items():
            if not isinstance(value, int | float):
                raise TypeError(f"metric {name} is {value!r}, not a number")
        for name, points in curves.items():
            for step, point in enumerate(points):
                self.log({f"{name}.{key}": value for key, value in point.items() if value is not None}, step)
        self.log(numbers, step=0)
        self.outputs = {port: dvc_content(path) for port, path in outputs.items()}
        with mlflow_errors(f"write the metrics of run {self.run_id}"):
            self._writer.flush()
            for name, text in texts.items():
                self.client.set_tag(self.run_id, name, masked(text)[:TEXT_LIMIT])
            for port, content in self.outputs.items():
                self.client.set_tag(self.run_id, f"{OUTPUT}{port}", content.md5)
        if dropped := self._writer.dropped:
            console.print(
                f"[yellow]warning[/] the oldest {dropped} points of the curves are not in MLflow, which could not be "
                "reached for too long. The step's own files have all of them."
            )
        self.write_lineage()

    def write_lineage(self) -> None:
        """Stores the lineage with the run, and the outputs if there are any yet.

        Raises:
            ConcordError: the tracking store or the artifact store cannot be reached.
        """
        outputs = {port: content.to_json() for port, content in self.outputs.items()}
        with mlflow_errors(f"store the lineage of run {self.run_id}"):
            self.client.log_dict(self.run_id, {**self.lineage.to_json(), "outputs": outputs}, LINEAGE)

    def tag(self, name: str, value: str) -> None:
        """Sets a tag of the run.

        Raises:
            ConcordError: the store cannot be reached.
        """
        with mlflow_errors(f"tag run {self.run_id}"):
            self.client.set_tag(self.run_id, name, masked(value)[:TEXT_LIMIT])

    def attach(self, folder: Path, name: str) -> None:
        """Stores a folder's files as artifacts of the run, below `name`, to be seen in MLflow's UI.

        Raises:
            ConcordError: the store cannot be reached.
        """
        with mlflow_errors(f"store {folder} with run {self.run_id}"):
            self.client.log_artifacts(self.run_id, str(folder), name)


@contextmanager
def step_run(
    step: Step,
    settings: Settings,
    inputs: Mapping[str, Path],
    lineage: Lineage | None = None,
    pipeline_run: str | None = None,
) -> Iterator[StepRun]:
    """Opens the step's run below the experiment's run, and closes it as FINISHED, FAILED or KILLED.

    The store is MLFLOW_TRACKING_URI, by default mlflow.db in the working directory. If MLFLOW_RUN_ID is set, that run
    is the parent; if that run is itself nested, the step writes into it directly.

    Args:
        step: from the step table; its settings sections become the run's params.
        settings: the whole experiment; its fingerprint selects the parent run.
        inputs: port name -> path; their DVC hashes become tags and dataset inputs.
        lineage: of this run if it was computed before, because hashing large inputs takes time; None: computed here.
        pipeline_run: Kubeflow's run id; all steps with the same id share one parent, whatever their settings.

    Raises:
        ConcordError: the store cannot be reached, or MLFLOW_RUN_ID names no run in it.
    """
    client = connect()
    lineage = lineage or compute_lineage(step, settings, inputs)
    hashes = {port: content.md5 for port, content in lineage.inputs.items()}
    commit, dirty = _git()
    tags = {
        STEP: step.name,
        "mlflow.runName": step.name,
        "mlflow.user": _user(),
        "mlflow.source.name": f"python -m components {step.name}",
        "mlflow.source.type": "LOCAL",
        COMMIT: commit,
        DIRTY: str(dirty).lower(),
        "concord.ranks": os.environ.get("WORLD_SIZE", "1"),
        CODE: lineage.code_fingerprint,
        **({KEY: lineage.key} if lineage.key else {}),
        **({PIPELINE_RUN: pipeline_run} if pipeline_run else {}),
    } | {f"{INPUT}{port}": value for port, value in hashes.items()}
    with mlflow_errors(f"open the run of step {step.name}"), store_lock():
        run, parent, owned = _open(client, step, settings, tags)
    tracked = StepRun(client, run, parent, commit, lineage, dirty, pipeline_run)
    announce(*tracked.closed_with(owned))
    try:
        with mlflow_errors(f"describe the run of step {step.name}"):
            _describe(client, run, step, settings, inputs, hashes)
        tracked.write_lineage()  # first, so that an unusable artifact store is reported before hours of training
        yield tracked
    except BaseException as error:
        _close_after(error, client, tracked, owned)
        raise
    finally:
        tracked._writer.close()
    with mlflow_errors(f"close run {tracked.run_id}"):
        tracked._writer.flush()
        _close(client, tracked, owned, "FINISHED")


def finished_run(
    run_id: str,
    commit: str,
    dirty: bool,
    lineage: Lineage,
    outputs: Mapping[str, Content],
    pipeline_run: str | None = None,
) -> StepRun:
    """Returns a run that another process has opened and closed, to be tagged.

    Args:
        run_id: of the step's run.
        commit, dirty, lineage, outputs, pipeline_run: see `StepRun`.

    Raises:
        ConcordError: the store cannot be reached, or has no such run.
    """
    client = connect()
    with mlflow_errors(f"find run {run_id}"):
        run = client.get_run(run_id)
    found = StepRun(client, run, run.data.tags.get(PARENT), commit, lineage, dirty, pipeline_run)
    found.outputs = dict(outputs)
    return found


def _open(
    client: "MlflowClient", step: Step, settings: Settings, tags: Mapping[str, str]
) -> tuple["Run", str | None, bool]:
    """Returns the step's run, its parent's id, and whether this process sets the parent's status."""
    platform_run, pipeline_run = _run_from_environment(client), tags.get(PIPELINE_RUN)
    if platform_run and pipeline_run:  # `pipelines lock` finds the run by either id
        top = platform_run.data.tags.get(PARENT, platform_run.info.run_id)
        client.set_tag(top, PIPELINE_RUN, pipeline_run)
    if platform_run and PARENT in platform_run.data.tags:
        for name, value in tags.items():
            if not name.startswith("mlflow."):  # the platform's name, user and source stay
                client.set_tag(platform_run.info.run_id, name, value)
        client.set_tag(platform_run.info.run_id, COMMIT, tags[COMMIT])
        client.update_run(platform_run.info.run_id, status="RUNNING")
        return platform_run, None, False
    if platform_run:
        parent = platform_run
    elif pipeline_run:
        parent = _pipeline_run(client, step, settings, pipeline_run)
    else:
        parent = _experiment_run(client, settings)
    parent_id = parent.info.run_id
    abandoned = client.search_runs(
        [parent.info.experiment_id],
        f"tags.`{PARENT}` = '{parent_id}' and tags.`{STEP}` = '{step.name}' and attributes.status = 'RUNNING'",
    )
    for run in abandoned:
        client.set_terminated(run.info.run_id, "KILLED")
    if not platform_run:
        client.update_run(parent_id, status="RUNNING")
    run = client.create_run(parent.info.experiment_id, tags={PARENT: parent_id, **tags})
    return run, parent_id, platform_run is None


def _run_from_environment(client: "MlflowClient") -> "Run | None":
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
    """Returns the parent run of all steps with these settings, creating it if needed."""
    experiment_id = _experiment(client, settings.experiment)
    tree = {name: content for name, content in settings.tree().items() if name not in WITHOUT_EFFECT}
    digest = fingerprint(tree)
    tags = {FINGERPRINT: digest, KIND: "experiment"}
    parent, created = _shared_run(client, experiment_id, f"{settings.experiment} {digest[:6]}", tags)
    if created:
        _log_params(client, parent, tree)
    return parent


def _pipeline_run(client: "MlflowClient", step: Step, settings: Settings, pipeline_run: str) -> "Run":
    """Returns the parent run of all steps of one pipeline run, creating it if needed.

    A step's container has only the step's own settings sections, so each step adds its sections to the parent.
    """
    tags = {PIPELINE_RUN: pipeline_run, KIND: "pipeline"}
    name = f"{settings.experiment} {pipeline_run[:8]}"
    parent, _ = _shared_run(client, _experiment(client, settings.experiment), name, tags)
    tree = settings.tree()
    _log_params(client, parent, {section: tree[section] for section in step.sections})
    return parent


def _shared_run(client: "MlflowClient", experiment_id: str, name: str, tags: Mapping[str, str]) -> tuple["Run", bool]:
    """Returns the oldest run with these tags, and whether this call created it.

    Two steps that start at the same time may both create one: the newer one is deleted, so both use the same run.
    """
    query = " and ".join(f"tags.`{tag}` = '{value}'" for tag, value in tags.items())
    existing = client.search_runs([experiment_id], query, max_results=1, order_by=["attributes.start_time ASC"])
    if existing:
        return existing[0], False
    created = client.create_run(experiment_id, run_name=name, tags={**tags, "mlflow.user": _user()})
    first = min(client.search_runs([experiment_id], query), key=lambda run: (run.info.start_time, run.info.run_id))
    if first.info.run_id != created.info.run_id:
        client.delete_run(created.info.run_id)
        return first, False
    return created, True


def _experiment(client: "MlflowClient", name: str) -> str:
    """Returns the id of the experiment, creating it if needed."""
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            experiment_id = client.create_experiment(name, local_artifacts(name))
            correct_paths()  # MLflow stores its artifacts below the working directory, which may be a copy by DVC
            return experiment_id
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            experiment = client.get_experiment_by_name(name)  # another step created it in the meantime
    if experiment is None or experiment.lifecycle_stage != "active":
        restore = f"mlflow experiments restore --experiment-id {experiment.experiment_id}" if experiment else "make ui"
        raise ConcordError(
            f"params.yaml: experiment: {name} was deleted in MLflow. Restore it ({restore}) or choose another name."
        )
    return str(experiment.experiment_id)


def _describe(
    client: "MlflowClient",
    run: "Run",
    step: Step,
    settings: Settings,
    inputs: Mapping[str, Path],
    hashes: Mapping[str, str],
) -> None:
    """Writes the step's settings and its inputs to the run."""
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
        name: (value if isinstance(value, str) else json.dumps(value))[:TEXT_LIMIT]
        for name, value in flatten(masked_json(tree, environment=True)).items()
    }
    logged = run.data.params  # a run that a platform retries has them already, and MLflow does not change a param
    for name, value in params.items():
        if logged.get(name, value) != value:
            raise ConcordError(
                f"MLflow run {run.info.run_id}: already has {name}={logged[name]}, and params.yaml says {value}. "
                "The settings of a run cannot change: unset MLFLOW_RUN_ID or set it to a new run."
            )
    new = [Param(name, value) for name, value in params.items() if name not in logged]
    for start in range(0, len(new), PARAM_BATCH):
        client.log_batch(run.info.run_id, params=new[start : start + PARAM_BATCH])


def _close(client: "MlflowClient", tracked: StepRun, owned: bool, status: str) -> None:
    for run_id in tracked.closed_with(owned):
        client.set_terminated(run_id, status)


def _close_after(error: BaseException, client: "MlflowClient", tracked: StepRun, owned: bool) -> None:
    """Closes the run of a step that failed or was stopped, in a bounded time: the first error is the one to report."""
    killed = isinstance(error, KeyboardInterrupt | SystemExit)

    def close() -> None:
        _close(client, tracked, owned, "KILLED" if killed else "FAILED")
        client.set_tag(tracked.run_id, ERROR, masked(f"{type(error).__name__}: {error}")[:TEXT_LIMIT])
        tracked._writer.flush()

    if not done_within(CLOSE_SECONDS, close):
        with suppress(OSError):  # the terminal may be gone
            console.print(
                f"[yellow]warning[/] MLflow at {masked(client.tracking_uri)} does not answer: run {tracked.run_id} may "
                "stay RUNNING there until the step runs again."
            )


def _metric_name(name: str) -> str:
    return re.sub(r"[^\w\-. :/]", "_", name)[:250]


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return str(os.getuid())


def _git() -> tuple[str, bool]:
    """Returns the commit of the working directory (`none` outside a repository) and whether its files differ from it.

    Only files that can change a result count. dvc.lock cannot, and DVC rewrites it after each stage. A new file counts
    among the code, where Python can import it and DVC hashes it.

    A container image has no repository: CONCORD_COMMIT holds the commit that it was built from.
    """
    if built := os.environ.get("CONCORD_COMMIT"):
        return built.removesuffix("-dirty"), built.endswith("-dirty")

    def git(*arguments: str) -> str:
        run = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=20, check=False)
        return run.stdout.strip() if run.returncode == 0 else ""

    try:
        commit = git("rev-parse", "HEAD")
        if not commit:
            return "none", False
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", *_WITHOUT_EFFECT)
        return commit, bool(changed or git("ls-files", "--others", "--exclude-standard", "--", ":/components"))
    except (OSError, subprocess.TimeoutExpired):
        return "none", False
