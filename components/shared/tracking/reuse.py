"""Fetches the outputs of an earlier run with the same inputs, code and params, instead of computing them again.

The earlier run may be a `dvc repro` on another machine or another pipeline run. The dvc.lock beside the code and the
finished MLflow runs with the same lineage key list such outputs; the DVC remote holds their bytes. DVC's own run cache
cannot be used, because it skips stages with `persist` outputs, and all of ours are `persist`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.console import console
from components.shared.tracking.connection import connect, mlflow_errors
from components.shared.tracking.libraries import differences, recorded
from components.shared.tracking.lineage import ROOT, Lineage
from components.shared.tracking.remote import Remote
from components.shared.tracking.tags import KEY, OUTPUT, REUSED
from components.steps import STEPS, Step

if TYPE_CHECKING:
    from mlflow import MlflowClient

DVC_LOCK = "dvc.lock"
MAX_RUNS = 20  # the newest MLflow runs that are considered


@dataclass(frozen=True)
class CachedOutputs:
    """Outputs of an earlier, equal run.

    Attributes:
        source: what lists them: `dvc.lock`, or `run ID` for an MLflow run.
        outputs: port name -> md5.
    """

    source: str
    outputs: Mapping[str, str]


def restore(step: Step, lineage: Lineage, remote: Remote, outputs: Mapping[str, Path]) -> CachedOutputs | None:
    """Fetches the outputs of an earlier, equal run if the remote has all of them; returns None if not.

    Args:
        step: a step with `asks_registry` is never served from the cache.
        outputs: port name -> path to write to.

    Raises:
        ConcordError: the remote or MLflow cannot be reached, or an object in the remote is damaged.
    """
    if step.asks_registry or lineage.key is None:
        return None
    tried = []
    for cached in _candidates(step, lineage, connect()):
        if cached.outputs in tried or cached.outputs.keys() != outputs.keys():
            continue
        tried.append(cached.outputs)
        if all(remote.fetch(md5, outputs[port]) for port, md5 in cached.outputs.items()):
            difference = differences(recorded(outputs["out"]), lineage.libraries)
            if difference and cached.source == DVC_LOCK:  # the key of a run holds its libraries
                message = f"outputs of other libraries ({cached.source}; {difference}) are not used"
                console.print(f"{step.name}: {message}", soft_wrap=True)
                continue
            message = f"fetched cached outputs of the same data, code and settings ({cached.source})"
            console.print(f"{step.name}: {message}", soft_wrap=True)
            return cached
        message = f"cached outputs exist ({cached.source}), but {remote.address} does not have them"
        console.print(f"{step.name}: {message}", soft_wrap=True)
    return None


def _candidates(step: Step, lineage: Lineage, client: "MlflowClient") -> Iterator[CachedOutputs]:
    if locked := find_in_lock(lineage, ROOT / "dvc.lock"):
        yield locked
    yield from find_in_runs(step, str(lineage.key), client)


def find_in_lock(lineage: Lineage, lock: Path) -> CachedOutputs | None:
    """Returns the stage's outputs in dvc.lock if its entry has the same inputs, code and params.

    dvc.lock says nothing of libraries: the outputs themselves do (libraries.json).

    The file is read with DVC's own YAML 1.2 parser, where 1e-05 is a number and `on` a string. PyYAML reads YAML 1.1,
    where 1e-05 is a string and `on` a boolean.
    """
    from dvc.utils.serialize import ParseError, load_yaml

    try:
        stage = load_yaml(lock)["stages"][lineage.step]
        deps = {dep["path"]: dep["md5"] for dep in stage["deps"]}
        outs = {out["path"]: out["md5"] for out in stage["outs"]}
        params = stage["params"]["params.yaml"]
    except (OSError, UnicodeDecodeError, ParseError, KeyError, TypeError):
        return None
    step = STEPS[lineage.step]
    paths: dict[str, Any] = {**step.inputs, "data": lineage.params.get("ingest", {}).get("path")}
    inputs = {paths[port]: content.md5 for port, content in lineage.inputs.items()}
    code = {path: content.md5 for path, content in lineage.code.items()}
    if deps != {**inputs, **code} or params != lineage.params or outs.keys() != set(step.outputs.values()):
        return None
    return CachedOutputs(DVC_LOCK, {port: outs[path] for port, path in step.outputs.items()})


def find_in_runs(step: Step, key: str, client: "MlflowClient") -> Iterator[CachedOutputs]:
    """Yields the outputs of finished MLflow runs with this lineage key, in all experiments, newest first."""
    with mlflow_errors("search for runs with an equal lineage"):
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        query = f"tags.`{KEY}` = '{key}' and attributes.status = 'FINISHED'"
        runs = client.search_runs(experiments, query, max_results=MAX_RUNS, order_by=["attributes.start_time DESC"])
    for run in runs:
        tags = run.data.tags
        outputs = {port: tags[f"{OUTPUT}{port}"] for port in step.outputs if f"{OUTPUT}{port}" in tags}
        yield CachedOutputs(tags.get(REUSED) or f"run {run.info.run_id}", outputs)
