"""`python -m pipelines lock`: writes dvc.lock from a finished run, as if `dvc repro` had run on this machine.

The hashes that the run's steps recorded in MLflow are first compared with the checkout: code, params and data must be
the same, because dvc.lock records the outputs of this checkout's stages. DVC itself reads dvc.yaml, hashes the checkout
and writes the file, so this module does not depend on the file's format.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from components.console import console
from components.errors import ConcordError, RetryableError
from components.settings import Settings, load_settings
from components.shared.io.secrets import masked
from components.shared.tracking.connection import connect, mlflow_errors, tracking_uri
from components.shared.tracking.flatten import flatten
from components.shared.tracking.hashes import Content, dvc_content
from components.shared.tracking.lineage import Lineage, step_params
from components.shared.tracking.past_runs import RunRecord, read_record
from components.shared.tracking.remote import REMOTE_ENV
from components.shared.tracking.tags import KEY, OUTPUT, PARENT, PIPELINE_RUN, REMOTE, STEP
from components.steps import STEPS, Step

if TYPE_CHECKING:
    from dvc.dependency import Dependency
    from dvc.output import Output
    from dvc.repo import Repo
    from dvc.stage import PipelineStage
    from mlflow import MlflowClient
    from mlflow.entities import Run

MAX_SHOWN = 8  # differences in an error message
MAX_CANDIDATES = 100  # runs with the same output that are compared with the checkout


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("--run", required=True, help="Kubeflow's id of the pipeline run, or the id of its MLflow run")


def command(args: argparse.Namespace) -> int:
    """Writes dvc.lock in the working directory; returns exit code 0.

    Raises:
        ConcordError: see `write_lock`.
    """
    changed = write_lock(args.run, Path.cwd())
    entries = f"new for {', '.join(changed)}" if changed else "nothing new"
    console.print(f"dvc.lock: {entries}, from run {args.run}. `dvc pull` fetches the outputs", markup=False)
    return 0


def write_lock(run: str, root: Path) -> list[str]:
    """Writes ROOT/dvc.lock from a finished run.

    Args:
        run: Kubeflow's id of the pipeline run, or the id of the MLflow run that is the parent of its steps.
        root: the checkout, with dvc.yaml, params.yaml, data.dvc and components/.

    Returns:
        The stages whose entries changed.

    Raises:
        ConcordError: there is no such run; a step has not finished; code, params or data differ between the run and
            the checkout (each difference is named); or an output is in no remote and not in the checkout, so that
            `dvc pull` could not fetch it. dvc.lock is then unchanged.
    """
    from dvc.dvcfile import Lockfile
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.stage import PipelineStage
    from dvc.stage.serialize import to_lockfile

    settings = load_settings(root / "params.yaml")
    client = connect()
    parent = find_pipeline_run(client, run)
    try:
        with Repo(str(root)) as repo, repo.lock:
            stages = {s.name: s for s in repo.index.stages if isinstance(s, PipelineStage) and s.name in STEPS}
            for name in STEPS:
                if name not in stages:
                    raise ConcordError(
                        f"{root / 'dvc.yaml'}: has no stage {name}, but the run has that step. See git status."
                    )

            def differences(name: str, record: RunRecord) -> list[str]:
                return list(fill_stage(repo, stages[name], STEPS[name], settings, record))

            errors: list[str] = []
            finished = finished_steps(client, parent, differences, errors)
            errors += [error for name, record in finished.items() for error in differences(name, record)]
            errors += mismatched_inputs(finished)
            if errors:
                raise _refusal(run, errors, {step.commit for step in finished.values()})
            filled = [stages[name] for name in finished]
            not_pushed = [stages[name] for name, record in finished.items() if not record.remote]
            if unavailable := [str(out) for stage in not_pushed for out in stage.outs if not _available(repo, out)]:
                raise _unavailable_outputs(run, unavailable)
            lock = Lockfile(repo, str(root / "dvc.lock"))
            before = lock.load().get("stages", {}) if lock.exists() else {}
            lock.dump_stages(filled)
            _warn_of_unknown_remotes(repo, finished)
            return [s.name for s in filled if before.get(s.name) != _plain(to_lockfile(s)[s.name])]
    except DvcException as error:
        raise ConcordError(f"{root}: DVC cannot read this checkout: {masked(str(error))}") from None


def find_pipeline_run(client: "MlflowClient", run: str) -> "Run":
    """Returns the MLflow run that is the parent of the steps, by its MLflow id or by Kubeflow's id.

    Raises:
        ConcordError: there is no such run.
    """
    from mlflow.exceptions import MlflowException

    with mlflow_errors(f"look for run {run}"):
        try:
            by_id = client.get_run(run)
            return client.get_run(by_id.data.tags[PARENT]) if by_id.data.tags.get(STEP) else by_id
        except (MlflowException, KeyError):
            pass
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        query = f"tags.`{PIPELINE_RUN}` = '{run}'" if "'" not in run else "tags.none = 'none'"
        runs = client.search_runs(experiments, query, max_results=1000, order_by=["attributes.start_time ASC"])
    parents = [candidate for candidate in runs if STEP not in candidate.data.tags]
    if not parents:
        raise ConcordError(
            f"{run}: no run with this id in MLflow at {masked(tracking_uri())}, neither MLflow's nor Kubeflow's. "
            "Set MLFLOW_TRACKING_URI to the store that the pipeline's steps wrote to; `mlflow runs list` or MLflow's "
            "page lists the runs."
        )
    return parents[0]


def finished_steps(
    client: "MlflowClient", parent: "Run", differences: Callable[[str, RunRecord], list[str]], errors: list[str]
) -> dict[str, RunRecord]:
    """Returns step -> the record of its newest finished run below `parent`.

    A step that Kubeflow took from its own cache has no run there. For it, a run of another pipeline run is chosen whose
    output is the one that this run's later steps read.

    Args:
        differences: lists the differences between the checkout and a step's record; it chooses between several runs
            with the same output.
        errors: gets a line for each step without a finished run.
    """
    with mlflow_errors(f"read the steps of run {parent.info.run_id}"):
        below = client.search_runs(
            [parent.info.experiment_id],
            f"tags.`{PARENT}` = '{parent.info.run_id}'",
            max_results=1000,
            order_by=["attributes.start_time DESC"],
        )
    if not any(run.data.tags.get(STEP) for run in below):
        raise ConcordError(f"MLflow run {parent.info.run_id}: has no steps below it, so its outputs are unknown.")
    records: dict[str, RunRecord] = {}
    for name in reversed(STEPS):  # last step first: its inputs identify the runs of the earlier steps
        own = [run for run in below if run.data.tags.get(STEP) == name]
        chosen = next((run for run in own if run.info.status == "FINISHED"), None)
        if chosen is not None:
            records[name] = read_record(client, chosen)
        elif not own and (cached := _cached_by_kubeflow(client, name, records, differences)):
            records[name] = cached
        else:
            status = f"its run is {own[0].info.status}" if own else "it has no run"
            errors.append(
                f"step {name}: {status}; wait until the pipeline's run has finished, or retry it, then lock again"
            )
    return {name: records[name] for name in STEPS if name in records}


def _cached_by_kubeflow(
    client: "MlflowClient",
    name: str,
    later: Mapping[str, RunRecord],
    differences: Callable[[str, RunRecord], list[str]],
) -> RunRecord | None:
    """Returns the record of a run whose output is the one that the later steps read; None if there is none.

    Runs with other settings or code may have written the same output, and Kubeflow does not say which of them it
    cached. A run that equals the checkout is preferred. If there is none, the newest is returned, and its differences
    are reported.
    """
    read = {step.lineage.inputs[name].md5 for step in later.values() if name in step.lineage.inputs}
    if len(read) != 1:
        return None
    with mlflow_errors(f"look for the run that wrote the output of {name}"):
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        runs = client.search_runs(
            experiments,
            f"tags.`{STEP}` = '{name}' and tags.`{OUTPUT}out` = '{read.pop()}' and attributes.status = 'FINISHED'",
            max_results=MAX_CANDIDATES,
            order_by=["attributes.start_time DESC"],
        )
    newest, compared = None, set()
    for run in sorted(runs, key=lambda run: REMOTE not in run.data.tags):  # first those whose outputs are in a remote
        if (key := run.data.tags.get(KEY)) in compared:  # same inputs, code and params as an earlier candidate
            continue
        try:
            record = read_record(client, run)
        except ConcordError as error:
            if len(runs) == 1 or isinstance(error, RetryableError):
                raise
            continue  # this record is damaged; another candidate may be intact
        compared.add(key)
        if not differences(name, record):
            return record
        newest = newest or record
    return newest


def fill_stage(repo: "Repo", stage: "PipelineStage", step: Step, settings: Settings, run: RunRecord) -> Iterator[str]:
    """Copies the run's hashes into DVC's stage, and yields each difference between the run and the checkout."""
    from dvc.dependency import ParamsDependency

    ports = {**step.inputs, **({"data": settings.ingest.path} if "data" in step.inputs else {})}
    inputs = {path: port for port, path in ports.items()}
    code_here = set()
    for dep in stage.deps:
        path = dep.def_path
        if isinstance(dep, ParamsDependency):
            dep.save()
        elif path in inputs:
            yield from _fill_input(repo, dep, step.name, inputs[path], run)
        else:
            code_here.add(path)
            yield from _fill_code(dep, step.name, run)
    for path in sorted(run.lineage.code.keys() - code_here):
        yield f"{step.name}: code {path}: the run depended on it, but this checkout does not"
    yield from _different_params(step, settings, run.lineage)
    for out in stage.outs:
        port = next(port for port, path in step.outputs.items() if path == out.def_path)
        if port not in run.outputs:
            yield f"{step.name}: {out.def_path}: the run has no such output"
        else:
            _set_hash(out, run.outputs[port])


def _fill_input(repo: "Repo", dep: "Dependency", step: str, port: str, run: RunRecord) -> Iterator[str]:
    content = run.lineage.inputs[port]
    if port in STEPS:
        _set_hash(dep, content)
        return
    here = raw_hash(repo, dep)
    if here is None:
        yield f"{step}: data {dep.def_path}: neither here nor in a .dvc file, so it cannot be compared: run `dvc pull`"
    elif here != content.md5:
        yield f"{step}: data {dep.def_path}: {content.md5} in the run, {here} here"
    elif dep.protocol == "local":
        _set_hash(dep, content)
    else:
        dep.save()  # for data in a bucket, dvc.lock has the store's ETags instead of a hash


def raw_hash(repo: "Repo", dep: "Dependency") -> str | None:
    """Returns DVC's md5 of the raw input: computed if the data is there, else from a .dvc file, else None."""
    from dvc_data.hashfile.build import build
    from dvc_data.hashfile.db import HashFileDB

    if dep.exists:
        unused = HashFileDB(dep.fs, "unused", hash_name="md5")  # a dry run writes nothing to it
        ignored = repo.dvcignore if dep.protocol == "local" else None
        _, _, built = build(unused, dep.fs_path, dep.fs, "md5", dry_run=True, ignore=ignored)
        return str(built.hash_info.value)
    for out in repo.index.outs:
        if out.fs_path == dep.fs_path and out.hash_info:
            return str(out.hash_info.value)
    return None


def _fill_code(dep: "Dependency", step: str, run: RunRecord) -> Iterator[str]:
    path = dep.def_path
    dep.save()
    if path not in run.lineage.code:
        unknown = f"{step}: code: the run recorded no code hashes, because its image has no dvc.yaml or no .dvcignore"
        yield f"{step}: code {path}: the run did not depend on it" if run.lineage.code else unknown
    elif (in_run := run.lineage.code[path].md5) != dep.hash_info.value:
        yield f"{step}: code {path}: {in_run} in the run, {dep.hash_info.value} here"


def _different_params(step: Step, settings: Settings, lineage: Lineage) -> Iterator[str]:
    ours, theirs = flatten(step_params(step, settings)), flatten(lineage.params)
    for name in sorted(ours.keys() | theirs.keys()):
        if name not in theirs or name not in ours or ours[name] != theirs[name]:
            yield (
                f"{step.name}: params {name}: {theirs.get(name, 'nothing')!r} in the run, "
                f"{ours.get(name, 'nothing')!r} here"
            )


def mismatched_inputs(finished: Mapping[str, RunRecord]) -> Iterator[str]:
    """Yields an error for each input of a step that differs from the output of the step before it."""
    for name, step in finished.items():
        for port, content in step.lineage.inputs.items():
            if port in finished and (output := finished[port].outputs["out"].md5) != content.md5:
                yield f"{name}: read {content.md5} from {port}, but {port} wrote {output}: the steps belong to two runs"


def _set_hash(item: "Output", content: Content) -> None:
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_data.hashfile.meta import Meta

    item.hash_name = "md5"
    item.hash_info = HashInfo("md5", content.md5)
    item.meta = Meta(size=content.size, nfiles=content.nfiles, isdir=content.folder)


def _refusal(run: str, errors: list[str], commits: set[str]) -> ConcordError:
    unique = list(dict.fromkeys(errors))
    shown = "\n".join(f"  {error}" for error in unique[:MAX_SHOWN])
    more = f"\n  and {len(unique) - MAX_SHOWN} more" if len(unique) > MAX_SHOWN else ""
    return ConcordError(
        f"run {run}: not a finished run of this checkout, so dvc.lock is unchanged:\n{shown}{more}\n"
        f"The run is of commit {', '.join(sorted(commits - {'none'})) or 'unknown'}. Check that commit out, with the "
        "run's params.yaml and data.dvc; or run the pipeline from this checkout."
    )


def _available(repo: "Repo", out: "Output") -> bool:
    """Whether the output is in DVC's cache, at its path in the checkout, or in the default remote."""
    md5, path = str(out.hash_info.value), Path(out.fs_path)
    if not out.changed_cache() or (path.exists() and dvc_content(path).md5 == md5):
        return True
    name = repo.config["core"].get("remote")
    if not name:
        return False
    try:
        return bool(repo.cloud.get_remote_odb(name).exists(md5))
    except Exception as error:  # each kind of remote raises its own errors
        raise ConcordError(
            f"DVC remote {name}: cannot check whether it has {out}: {masked(str(error))[:300]}. The run itself "
            "pushed to no remote. Check `dvc remote list` and the credentials."
        ) from None


def _unavailable_outputs(run: str, outputs: list[str]) -> ConcordError:
    return ConcordError(
        f"run {run}: `dvc pull` could not fetch {', '.join(outputs)}, so dvc.lock is unchanged: the run pushed to no "
        f"DVC remote ({REMOTE_ENV} was not set where its steps ran), and neither this checkout nor its default remote "
        f"has these outputs. Set {REMOTE_ENV} and run the pipeline again; or copy the outputs from Kubeflow's artifact "
        "store or another machine to these paths, lock again, and then run `dvc commit` and `dvc push`."
    )


def _warn_of_unknown_remotes(repo: "Repo", finished: Mapping[str, RunRecord]) -> None:
    """Prints a warning for each remote with outputs of the run that is not configured in this checkout."""
    known = {masked(str(remote["url"])).rstrip("/") for remote in repo.config["remote"].values()}
    for address in sorted({record.remote.rstrip("/") for record in finished.values()} - known - {""}):
        line = (
            f" {address} has outputs of the run, but is not a DVC remote of this checkout: "
            f"`dvc remote add of-the-run {address}`, then `dvc pull --remote of-the-run`"
        )
        console.print(Text.assemble(("warning", "yellow"), line), soft_wrap=True)


def _plain(content: Any) -> Any:
    """Converts ordered mappings to plain ones, for comparison with parsed YAML."""
    if isinstance(content, Mapping):
        return {key: _plain(value) for key, value in content.items()}
    return [_plain(value) for value in content] if isinstance(content, list | tuple) else content
