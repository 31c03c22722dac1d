"""`python -m pipelines run`: the compiled pipeline on this machine, each step in a container of the image that a
cluster would pull. kfp's DockerRunner drives it; whether a step is done, containers.py judges."""

import argparse
import contextlib
import io
import os
import shutil
import signal
import uuid
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from components.console import console
from components.errors import ConcordError
from components.settings import Settings, load_settings
from components.shared.io.atomic import write_json
from components.shared.io.locks import output_lock
from components.shared.kubeflow.names import RUN_ID, STATE
from components.shared.tracking.hashes import dvc_hash
from components.steps import STEPS
from pipelines.cluster_settings import Cluster, load_cluster, quantity_bytes
from pipelines.compile import add_pipeline_arguments, chosen_image, compile_pipeline
from pipelines.containers import Machine, Try, engine, image_id, step_containers
from pipelines.outputs import stamped_hashes

RAW = "/raw"  # the raw input in every container, wherever it lies here
# Given to the containers where they are set here, beside those that the settings name. Values are in no file.
PASSED = (
    "MLFLOW_TRACKING_URI",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD",
    "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD",
    "MLFLOW_RUN_ID",
    "MLFLOW_S3_ENDPOINT_URL",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "CONCORD_DVC_REMOTE",
    "HF_TOKEN",
)


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """The command's own words."""
    add_pipeline_arguments(sub)
    sub.add_argument("--data", type=Path, default=Path("data"), help="raw input (default: %(default)s)")
    sub.add_argument(
        "--out", type=Path, default=Path("artifacts/kubeflow"), help="a folder a run (default: %(default)s)"
    )
    sub.add_argument("--state", type=Path, help="training state, kept between runs (default: OUT/.checkpoints)")
    sub.add_argument("--retries", type=int, default=0, help="start a failed step again so often (default: %(default)s)")
    sub.add_argument("--network", default="host", help="of the containers (default: %(default)s)")
    sub.add_argument("--gpus", help="all, or how many")
    sub.add_argument("--volume", action="append", default=[], metavar="HERE:THERE[:ro]", help="a further mount")
    sub.add_argument("--env", action="append", default=[], metavar="NAME", help="a further variable to pass on")


def command(given: argparse.Namespace) -> int:
    """Runs the pipeline; exit code 0 where every step left all its outputs.

    Raises:
        ConcordError: something is missing before the start, or a step failed; it and its log are named.
    """
    settings, cluster = load_settings(given.params), load_cluster(given.cluster)
    image = chosen_image(given.image, cluster)
    environment = passed_on(cluster, given.env)
    check_tracking(environment)
    if not given.data.is_dir():
        raise ConcordError(f"{given.data}: no such folder. Make it (make data) or name it with --data.")
    client = engine()
    identity = image_id(client, image)
    client.close()
    out, state = given.out.resolve(), (given.state or given.out / ".checkpoints").resolve()
    state.mkdir(parents=True, exist_ok=True)
    run_id, data_hash = str(uuid.uuid4()), dvc_hash(given.data)
    console.print(f"run {run_id}, image {image} ({identity[:19]}), data {data_hash}", markup=False)
    arguments: dict[str, Any] = container_arguments(given.network, given.gpus)
    arguments["environment"] = {**environment, RUN_ID: run_id}
    with output_lock(state / "run"), scratch(out / f".scratch-{run_id}") as temporary:
        volumes = {
            str(given.data.resolve()): {"bind": RAW, "mode": "ro"},
            str(state): {"bind": STATE, "mode": "rw"},
            str(temporary): {"bind": "/tmp", "mode": "rw"},
            **dict(volume(text) for text in given.volume),
        }
        machine = Machine(run_id, volumes, shared_memory(cluster))
        package = out / "pipeline.yaml"
        compile_pipeline(settings, with_retries(cluster, given.retries), image, data_hash, package, given.cache == "on")
        run_pipeline(package, out, machine, arguments)
    return report(machine, settings, {"image": image, "image_id": identity, "data_hash": data_hash})


def passed_on(cluster: Cluster, further: list[str]) -> dict[str, str]:
    """Variables of this environment that steps get, by name.

    Raises:
        ConcordError: one that was asked for is not set.
    """
    for name in further:
        if name not in os.environ:
            raise ConcordError(f"--env {name}: not set here.")
    names = {*PASSED, *(name for secret in cluster.secrets for name in secret.env), *further}
    return {name: os.environ[name] for name in sorted(names) if name in os.environ}


def check_tracking(environment: Mapping[str, str]) -> None:
    """Raises ConcordError unless the containers are told of an MLflow server: a file in one is gone with it."""
    if not environment.get("MLFLOW_TRACKING_URI", "").startswith(("http://", "https://")):
        raise ConcordError(
            "MLFLOW_TRACKING_URI: must name an MLflow server that containers reach. `make up` starts one; then "
            "`set -a; . docker/services.env; set +a`."
        )


def container_arguments(network: str, gpus: str | None) -> dict[str, Any]:
    """What every container is started with: this user, no rights, a read-only root.

    Raises:
        ConcordError: `gpus` is neither `all` nor a number.
    """
    from docker.types import DeviceRequest

    arguments: dict[str, Any] = {
        "network_mode": network,
        "user": f"{os.getuid()}:{os.getgid()}",  # so that outputs are this user's
        "read_only": True,
        "init": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
    }
    if gpus is not None:
        if gpus != "all" and not gpus.isdecimal():
            raise ConcordError(f"--gpus {gpus}: all, or a number.")
        count = -1 if gpus == "all" else int(gpus)
        arguments["device_requests"] = [DeviceRequest(count=count, capabilities=[["gpu"]])]
    return arguments


def volume(text: str) -> tuple[str, dict[str, str]]:
    """`HERE:THERE[:ro]` as the Docker client takes it.

    Raises:
        ConcordError: it has another form, or there is nothing here.
    """
    parts = text.split(":")
    if len(parts) not in (2, 3) or not parts[1].startswith("/") or parts[2:] not in ([], ["ro"], ["rw"]):
        raise ConcordError(f"--volume {text}: HERE:THERE or HERE:THERE:ro, THERE an absolute path in the container.")
    here = Path(parts[0]).resolve()
    if not here.exists():
        raise ConcordError(f"--volume {text}: {here} does not exist.")
    return str(here), {"bind": parts[1], "mode": parts[2] if parts[2:] else "rw"}


def shared_memory(cluster: Cluster) -> dict[str, int]:
    """Step -> bytes of /dev/shm, where the settings name a size."""
    sizes = {name: cluster.pod(name).shared_memory for name in STEPS}
    return {name: quantity_bytes(size) for name, size in sizes.items() if size}


def with_retries(cluster: Cluster, retries: int) -> Cluster:
    """The cluster's settings for this machine: so many retries of each step, a second apart."""
    tree = cluster.tree()
    for pod in tree["steps"].values():
        pod["retries"] = retries
    tree["backoff"] = {"seconds": 1, "factor": 1}
    return Cluster.model_validate(tree)


@contextlib.contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A folder for the time of the run."""
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run_pipeline(package: Path, out: Path, machine: Machine, arguments: Mapping[str, Any]) -> None:
    """Runs the compiled pipeline to its end or to the first step that failed for good.

    Raises:
        ConcordError: the Docker engine refused a container.
    """
    from kfp import components, local

    import docker

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # containers are removed on any way out
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), step_containers(machine):
            warnings.simplefilter("ignore")  # of what only a cluster heeds
            local.init(local.DockerRunner(**arguments), pipeline_root=str(out), raise_on_error=False)
            components.load_component_from_file(str(package))(data_uri=RAW)
    except docker.errors.DockerException as error:
        raise ConcordError(f"Docker refused a container: {getattr(error, 'explanation', None) or error}") from None
    except KeyboardInterrupt:
        console.print("stopped, and the container removed; start it again, and training goes on from here")
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def report(machine: Machine, settings: Settings, what: Mapping[str, str]) -> int:
    """Prints a line a step and leaves run.json in the run's folder.

    Returns:
        0.

    Raises:
        ConcordError: a step failed or was never started.
    """
    last: dict[str, Try] = {this.step: this for this in machine.tries}
    failed = [name for name in STEPS if name not in last or last[name].faults]
    table = Table("step", "state", "tries", "seconds")
    table.add_column("log", overflow="fold")
    for name in STEPS:
        if name not in last:
            table.add_row(name, "not started", "0", "", "")
            continue
        this = last[name]
        state = "[red]failed[/]" if this.faults else "[green]done[/]"
        seconds = sum(each.seconds for each in machine.tries if each.step == name)
        table.add_row(name, state, str(this.number), f"{seconds:.0f}", str(this.log))
    console.print(table)
    if not last:
        raise ConcordError("no step was started.")
    folder = machine.tries[0].place.parent
    write_json(folder / "run.json", record(machine, settings, what, not failed))
    if not failed:
        console.print(f"done: {folder}", markup=False)
        return 0
    first = failed[0]
    if first not in last:
        raise ConcordError(f"{first}: never started, though what it needs was there. {folder}/run.json has the rest.")
    this = last[first]
    tries = f", try {this.number}" if this.number > 1 else ""
    raise ConcordError(f"{first}{tries}: {'; '.join(this.faults)}. What it said: {this.log}")


def record(machine: Machine, settings: Settings, what: Mapping[str, str], done: bool) -> dict[str, Any]:
    """The run as JSON: what it was made of, each try, and the DVC hash of each output of the steps that are done."""
    whole = {this.step: this for this in machine.tries if not this.faults}
    return {
        "run_id": machine.label,
        "done": done,
        **what,
        "params": settings.tree(),
        "tries": [
            {"step": this.step, "exit_code": this.exit_code, "faults": this.faults, "log": str(this.log)}
            for this in machine.tries
        ],
        "outputs": {
            name: {
                port: {"path": str(this.place / port), "dvc_hash": digest}
                for port, digest in stamped_hashes(STEPS[name], this.place).items()
            }
            for name, this in whole.items()
        },
    }
