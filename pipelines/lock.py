"""`python -m pipelines lock`: writes dvc.lock from a finished run, as `dvc repro` would have on this machine.

What the run's steps stamped in MLflow is held against the checkout first: code, params and data must be the same, since
dvc.lock says of this very checkout what its stages make. DVC itself reads dvc.yaml, hashes the checkout and writes the
file; nothing here knows its format.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from components.console import console
from components.errors import ConcordError
from components.settings import Settings, load_settings
from components.shared.io.secrets import masked
from components.shared.tracking.connection import connect, mlflow_errors, tracking_uri
from components.shared.tracking.hashes import Content, dvc_content
from components.shared.tracking.lineage import Lineage, params_of
from components.shared.tracking.remote import VARIABLE
from components.shared.tracking.step_run import KEY, OUTPUT, PARENT, PIPELINE_RUN, REMOTE, STEP, Record, flat, record_of
from components.steps import STEPS, Step

if TYPE_CHECKING:
    from dvc.dependency import Dependency
    from dvc.output import Output
    from dvc.repo import Repo
    from dvc.stage import PipelineStage
    from mlflow import MlflowClient
    from mlflow.entities import Run

SHOWN = 8  # differences that are told
MAKERS = 100  # runs with the same output that are looked at


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The words that it takes."""
    parser.add_argument("--run", required=True, help="id of the pipeline's run, or of its run in MLflow")


def command(given: argparse.Namespace) -> int:
    """Writes dvc.lock in the working directory from a finished run.

    Raises:
        ConcordError: see `write_lock`.
    """
    changed = write_lock(given.run, Path.cwd())
    what = f"new for {', '.join(changed)}" if changed else "nothing new"
    console.print(f"dvc.lock: {what}, from run {given.run}. `dvc pull` brings the outputs", markup=False)
    return 0


def write_lock(run: str, root: Path) -> list[str]:
    """Writes ROOT/dvc.lock.

    Args:
        run: id of the MLflow run that is the parent of the steps, or Kubeflow's id of the pipeline's run.
        root: the checkout: dvc.yaml, params.yaml, data.dvc, components/.

    Returns:
        The stages whose entry changed.

    Raises:
        ConcordError: there is no such run, a step of it has not finished, or code, params or data of the run are not
            those of the checkout; each difference is named, and dvc.lock stays as it is. So it does where an output
            was pushed to no remote and is not here either, since `dvc pull` could not bring it.
    """
    from dvc.dvcfile import Lockfile
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.stage import PipelineStage
    from dvc.stage.serialize import to_lockfile

    settings = load_settings(root / "params.yaml")
    client = connect()
    parent = find_run(client, run)
    try:
        with Repo(str(root)) as repo, repo.lock:
            stages = {s.name: s for s in repo.index.stages if isinstance(s, PipelineStage) and s.name in STEPS}
            for name in STEPS:
                if name not in stages:
                    raise ConcordError(f"{root / 'dvc.yaml'}: has no stage {name}, which the run has. See git status.")

            def differences(name: str, record: Record) -> list[str]:
                return list(fill(repo, stages[name], STEPS[name], settings, record))

            faults: list[str] = []
            finished = finished_steps(client, parent, differences, faults)
            faults += [fault for name, record in finished.items() for fault in differences(name, record)]
            faults += unchained(finished)
            if faults:
                raise _refusal(run, faults, {step.commit for step in finished.values()})
            filled = [stages[name] for name in finished]
            pushed_to_none = [stages[name] for name, record in finished.items() if not record.remote]
            if lost := [str(out) for stage in pushed_to_none for out in stage.outs if not _known(repo, out)]:
                raise _lost(run, lost)
            lock = Lockfile(repo, str(root / "dvc.lock"))
            before = lock.load().get("stages", {}) if lock.exists() else {}
            lock.dump_stages(filled)
            _tell_of_remotes(repo, finished)
            return [s.name for s in filled if before.get(s.name) != _plain(to_lockfile(s)[s.name])]
    except DvcException as error:
        raise ConcordError(f"{root}: DVC cannot read this checkout: {masked(str(error))}") from None


def find_run(client: "MlflowClient", run: str) -> "Run":
    """The parent of the steps, by its MLflow id or by Kubeflow's.

    Raises:
        ConcordError: there is no such run.
    """
    from mlflow.exceptions import MlflowException

    with mlflow_errors(f"look for run {run}"):
        try:
            found = client.get_run(run)
            return client.get_run(found.data.tags[PARENT]) if found.data.tags.get(STEP) else found
        except (MlflowException, KeyError):
            pass
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        query = f"tags.`{PIPELINE_RUN}` = '{run}'" if "'" not in run else "tags.none = 'none'"
        runs = client.search_runs(experiments, query, max_results=1000, order_by=["attributes.start_time ASC"])
    above = [candidate for candidate in runs if STEP not in candidate.data.tags]
    if not above:
        raise ConcordError(
            f"{run}: no run with this id in MLflow at {masked(tracking_uri())}, neither MLflow's nor Kubeflow's. "
            "MLFLOW_TRACKING_URI names the store that the pipeline's steps wrote to; `mlflow runs list` or its page "
            "lists the runs."
        )
    return above[0]


def finished_steps(
    client: "MlflowClient", parent: "Run", differences: Callable[[str, Record], list[str]], faults: list[str]
) -> dict[str, Record]:
    """The newest finished run of each step below `parent`.

    A step whose task Kubeflow took from its own cache has no run there: it is one, of any pipeline run, that made what
    the others of this run were given.

    Args:
        differences: between the checkout and a step's record, of which there may be several that made the same.
        faults: gets a line for each step that has none.
    """
    with mlflow_errors(f"read the steps of run {parent.info.run_id}"):
        below = client.search_runs(
            [parent.info.experiment_id],
            f"tags.`{PARENT}` = '{parent.info.run_id}'",
            max_results=1000,
            order_by=["attributes.start_time DESC"],
        )
    if not any(run.data.tags.get(STEP) for run in below):
        raise ConcordError(f"MLflow run {parent.info.run_id}: has no steps below it, so it tells of no outputs.")
    found: dict[str, Record] = {}
    for name in reversed(STEPS):  # the last first: what it was given says which run made it
        own = [run for run in below if run.data.tags.get(STEP) == name]
        chosen = next((run for run in own if run.info.status == "FINISHED"), None)
        if chosen is not None:
            found[name] = record_of(client, chosen)
        elif not own and (cached := _cached_by_kubeflow(client, name, found, differences)):
            found[name] = cached
        else:
            status = f"its run is {own[0].info.status}" if own else "it has no run"
            faults.append(f"step {name}: {status}; let the pipeline's run finish, or retry it, and lock then")
    return {name: found[name] for name in STEPS if name in found}


def _cached_by_kubeflow(
    client: "MlflowClient",
    name: str,
    later: Mapping[str, Record],
    differences: Callable[[str, Record], list[str]],
) -> Record | None:
    """The run that made what the later steps were given.

    Runs with other settings or at another code may have made the same. Which of them Kubeflow has kept it does not
    say, so one that is like the checkout is taken; where none is, the newest, so that its differences are told.
    """
    given = {step.lineage.inputs[name].md5 for step in later.values() if name in step.lineage.inputs}
    if len(given) != 1:
        return None
    with mlflow_errors(f"look for the run that made {name}"):
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        runs = client.search_runs(
            experiments,
            f"tags.`{STEP}` = '{name}' and tags.`{OUTPUT}out` = '{given.pop()}' and attributes.status = 'FINISHED'",
            max_results=MAKERS,
            order_by=["attributes.start_time DESC"],
        )
    newest, tried = None, set()
    for run in sorted(runs, key=lambda run: REMOTE not in run.data.tags):  # those first whose outputs can be fetched
        if (key := run.data.tags.get(KEY)) in tried:  # the same inputs, code and params
            continue
        try:
            record = record_of(client, run)
        except ConcordError:
            if len(runs) == 1:
                raise
            continue  # damaged; another may tell as much
        tried.add(key)
        if not differences(name, record):
            return record
        newest = newest or record
    return newest


def fill(repo: "Repo", stage: "PipelineStage", step: Step, settings: Settings, run: Record) -> Iterator[str]:
    """Puts what the run says into DVC's stage, and yields each difference between the run and the checkout."""
    from dvc.dependency import ParamsDependency

    ports = {**step.inputs, **({"data": settings.ingest.path} if "data" in step.inputs else {})}
    inputs = {path: port for port, path in ports.items()}
    here = set()
    for dep in stage.deps:
        path = dep.def_path
        if isinstance(dep, ParamsDependency):
            dep.save()
        elif path in inputs:
            yield from _fill_input(repo, dep, step.name, inputs[path], run)
        else:
            here.add(path)
            yield from _fill_code(dep, step.name, run)
    yield from (f"{step.name}: code {path}: the run depended on it" for path in sorted(run.lineage.code.keys() - here))
    yield from _other_params(step, settings, run.lineage)
    for out in stage.outs:
        port = next(port for port, path in step.outputs.items() if path == out.def_path)
        if port not in run.outputs:
            yield f"{step.name}: {out.def_path}: the run did not make it"
        else:
            _set(out, run.outputs[port])


def _fill_input(repo: "Repo", dep: "Dependency", step: str, port: str, run: Record) -> Iterator[str]:
    content = run.lineage.inputs[port]
    if port in STEPS:
        _set(dep, content)
        return
    found = raw_hash(repo, dep)
    if found is None:
        yield f"{step}: data {dep.def_path}: neither here nor in a .dvc file, so nothing can be said: dvc pull it first"
    elif found != content.md5:
        yield f"{step}: data {dep.def_path}: {content.md5} in the run, {found} here"
    elif dep.protocol == "local":
        _set(dep, content)
    else:
        dep.save()  # of an address, dvc.lock has what the store tells of it


def raw_hash(repo: "Repo", dep: "Dependency") -> str | None:
    """DVC's md5 of the raw input: of what lies there, else of what a .dvc file says should."""
    from dvc_data.hashfile.build import build
    from dvc_data.hashfile.db import HashFileDB

    if dep.exists:
        nowhere = HashFileDB(dep.fs, "nowhere", hash_name="md5")
        ignored = repo.dvcignore if dep.protocol == "local" else None
        _, _, found = build(nowhere, dep.fs_path, dep.fs, "md5", dry_run=True, ignore=ignored)
        return str(found.hash_info.value)
    for out in repo.index.outs:
        if out.fs_path == dep.fs_path and out.hash_info:
            return str(out.hash_info.value)
    return None


def _fill_code(dep: "Dependency", step: str, run: Record) -> Iterator[str]:
    path = dep.def_path
    dep.save()
    if path not in run.lineage.code:
        unknown = f"{step}: code: the run does not know its code, its image lacks dvc.yaml or .dvcignore"
        yield f"{step}: code {path}: the run did not depend on it" if run.lineage.code else unknown
    elif (found := run.lineage.code[path].md5) != dep.hash_info.value:
        yield f"{step}: code {path}: {found} in the run, {dep.hash_info.value} here"


def _other_params(step: Step, settings: Settings, lineage: Lineage) -> Iterator[str]:
    ours, theirs = flat(params_of(step, settings)), flat(lineage.params)
    for name in sorted(ours.keys() | theirs.keys()):
        if name not in theirs or name not in ours or ours[name] != theirs[name]:
            yield (
                f"{step.name}: params {name}: {theirs.get(name, 'nothing')!r} in the run, "
                f"{ours.get(name, 'nothing')!r} here"
            )


def unchained(finished: Mapping[str, Record]) -> Iterator[str]:
    """Where a step was given something else than the step before it made."""
    for name, step in finished.items():
        for port, content in step.lineage.inputs.items():
            if port in finished and (made := finished[port].outputs["out"].md5) != content.md5:
                yield f"{name}: was given {content.md5} by {port}, which made {made}: these are steps of two runs"


def _set(item: "Output", content: Content) -> None:
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_data.hashfile.meta import Meta

    item.hash_name = "md5"
    item.hash_info = HashInfo("md5", content.md5)
    item.meta = Meta(size=content.size, nfiles=content.nfiles, isdir=content.folder)


def _refusal(run: str, faults: list[str], commits: set[str]) -> ConcordError:
    once = list(dict.fromkeys(faults))
    shown = "\n".join(f"  {fault}" for fault in once[:SHOWN])
    more = f"\n  and {len(once) - SHOWN} more" if len(once) > SHOWN else ""
    return ConcordError(
        f"run {run}: is no finished run of this checkout, so dvc.lock stays as it is:\n{shown}{more}\n"
        f"The run is of commit {', '.join(sorted(commits - {'none'})) or 'unknown'}. Check that out, with the run's "
        "params.yaml and data.dvc; or run the pipeline from this checkout."
    )


def _known(repo: "Repo", out: "Output") -> bool:
    """Whether DVC has the output at hand or knows where it is: in its cache, in place, in the default remote."""
    md5, place = str(out.hash_info.value), Path(out.fs_path)
    if not out.changed_cache() or (place.exists() and dvc_content(place).md5 == md5):
        return True
    name = repo.config["core"].get("remote")
    if not name:
        return False
    try:
        return bool(repo.cloud.get_remote_odb(name).exists(md5))
    except Exception as error:  # each kind of remote fails in its own way
        raise ConcordError(
            f"DVC remote {name}: could not be asked whether it has {out}: {masked(str(error))[:300]}. The run has "
            "pushed to no remote itself. Check `dvc remote list` and the credentials."
        ) from None


def _lost(run: str, lost: list[str]) -> ConcordError:
    return ConcordError(
        f"run {run}: nobody could `dvc pull` {', '.join(lost)}, so dvc.lock stays as it is: the run pushed to no DVC "
        f"remote ({VARIABLE} was not set where its steps ran), and neither this checkout nor its default remote has "
        f"what it made. Set {VARIABLE} and run the pipeline again; or put what Kubeflow's artifact store or another "
        "machine has to these paths, lock again, and then `dvc commit` and `dvc push`."
    )


def _tell_of_remotes(repo: "Repo", finished: Mapping[str, Record]) -> None:
    """A line about each remote that has outputs and that this checkout's DVC does not know."""
    known = {masked(str(remote["url"])).rstrip("/") for remote in repo.config["remote"].values()}
    for address in sorted({record.remote.rstrip("/") for record in finished.values()} - known - {""}):
        line = (
            f" {address} has outputs of the run, and is none of this checkout's DVC remotes: "
            f"`dvc remote add of-the-run {address}`, then `dvc pull --remote of-the-run`"
        )
        console.print(Text.assemble(("warning", "yellow"), line), soft_wrap=True)


def _plain(content: Any) -> Any:
    """Ordered mappings as plain ones, to be compared with what YAML gives."""
    if isinstance(content, Mapping):
        return {key: _plain(value) for key, value in content.items()}
    return [_plain(value) for value in content] if isinstance(content, list | tuple) else content
