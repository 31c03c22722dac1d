"""Outputs that were made before from the same inputs, code and params: fetched, not computed again.

Who made them does not matter: `dvc repro` on a laptop or another run of the pipeline. Two places tell of them: the
dvc.lock beside the code, and MLflow's finished runs, by their lineage's key. The DVC remote has the bytes. DVC's own
run cache is no place to look: it does not take stages whose outputs are `persist`, as all of ours are.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.console import console
from components.shared.tracking.connection import connect, mlflow_errors
from components.shared.tracking.lineage import ROOT, Lineage
from components.shared.tracking.remote import Remote
from components.shared.tracking.step_run import KEY, OUTPUT, REUSED
from components.steps import STEPS, Step

if TYPE_CHECKING:
    from mlflow import MlflowClient

NEWEST = 20  # MLflow runs that are looked at


@dataclass(frozen=True)
class CachedOutputs:
    """Outputs that exist already.

    Attributes:
        where: what tells of them: `dvc.lock`, or `run ID`.
        outputs: port name -> md5.
    """

    where: str
    outputs: Mapping[str, str]


def restore(step: Step, lineage: Lineage, remote: Remote, outputs: Mapping[str, Path]) -> CachedOutputs | None:
    """Fetches the step's outputs if somebody has made them and the remote has them whole; None if not.

    Args:
        step: one whose `asks_registry` is true is never taken from what was made before.
        outputs: port name -> where to.

    Raises:
        ConcordError: the remote or MLflow is away, or an object in the remote is damaged.
    """
    if step.asks_registry or lineage.key is None:
        return None
    tried = []
    for made in _known(step, lineage, connect()):
        if made.outputs in tried or made.outputs.keys() != outputs.keys():
            continue
        tried.append(made.outputs)
        if all(remote.fetch(md5, outputs[port]) for port, md5 in made.outputs.items()):
            equal = "from the same data, code and settings"
            console.print(f"{step.name}: made before {equal} ({made.where}): fetched", soft_wrap=True)
            return made
        console.print(f"{step.name}: made before ({made.where}), but {remote.address} does not have it", soft_wrap=True)
    return None


def _known(step: Step, lineage: Lineage, client: "MlflowClient") -> Iterator[CachedOutputs]:
    if locked := cached_by_lock(lineage, ROOT / "dvc.lock"):
        yield locked
    yield from cached_by_runs(step, str(lineage.key), client)


def cached_by_lock(lineage: Lineage, lock: Path) -> CachedOutputs | None:
    """What dvc.lock says the stage makes, if it is about the same inputs, code and params.

    It is read as DVC reads it. DVC writes YAML 1.2, where 1e-05 is a number and `on` a word; PyYAML reads 1.1, where it
    is the other way round.
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
    return CachedOutputs("dvc.lock", {port: outs[path] for port, path in step.outputs.items()})


def cached_by_runs(step: Step, key: str, client: "MlflowClient") -> Iterator[CachedOutputs]:
    """What MLflow's finished runs with this key made, the newest first; of every experiment."""
    with mlflow_errors("look for an equal run"):
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        query = f"tags.`{KEY}` = '{key}' and attributes.status = 'FINISHED'"
        found = client.search_runs(experiments, query, max_results=NEWEST, order_by=["attributes.start_time DESC"])
    for run in found:
        tags = run.data.tags
        outputs = {port: tags[f"{OUTPUT}{port}"] for port in step.outputs if f"{OUTPUT}{port}" in tags}
        yield CachedOutputs(tags.get(REUSED) or f"run {run.info.run_id}", outputs)
