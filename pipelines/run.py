"""`python -m pipelines run`: runs the compiled pipeline on this machine, each step in a container.

The containers use the image that a cluster would pull. kfp's DockerRunner drives the pipeline; containers.py decides
whether a step succeeded.
"""

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
from components.s3_address import parse_location
from components.settings import Settings, load_settings
from components.shared.io.atomic import write_json
from components.shared.io.locks import output_lock
from components.shared.io.secrets import masked, masked_json
from components.shared.kubeflow.names import RUN_ID, STATE
from components.shared.tracking.hashes import dvc_hash
from components.steps import STEPS
from pipelines.cluster_settings import Cluster, load_cluster, quantity_bytes
from pipelines.compile import add_pipeline_arguments, chosen_image, compile_pipeline
from pipelines.containers import ContainerRun, LocalRun, docker_client, image_id, step_containers
from pipelines.outputs import reported_hashes

RAW = "/raw"  # the raw input's path in every container
# Variables that containers get if they are set here, besides those that the cluster's secrets name. The values are
# written to no file.
PASSED_VARIABLES = (
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
    """Adds the command's arguments."""
    add_pipeline_arguments(sub)
    sub.add_argument("--data", type=Path, default=Path("data"), help="folder of the raw input (default: %(default)s)")
    sub.add_argument("--data-uri", help="in place of --data: s3://bucket/gauges-*, whose newest folder is used")
    sub.add_argument(
        "--out",
        type=Path,
        default=Path("artifacts/kubeflow"),
        help="each run gets a folder in it (default: %(default)s)",
    )
    sub.add_argument("--state", type=Path, help="training state, kept between runs (default: OUT/.checkpoints)")
    sub.add_argument(
        "--retries", type=int, default=0, help="retries of a step, where one may help (default: %(default)s)"
    )
    sub.add_argument("--network", default="host", help="Docker network of the containers (default: %(default)s)")
    sub.add_argument("--gpus", help="GPUs of the containers: all, or how many (default: none)")
    sub.add_argument("--volume", action="append", default=[], metavar="HERE:THERE[:ro]", help="a further mount")
    sub.add_argument(
        "--env", action="append", default=[], metavar="NAME", help="a further variable to pass to the containers"
    )


def command(args: argparse.Namespace) -> int:
    """Runs the pipeline; returns exit code 0 if every step wrote all of its outputs.

    Raises:
        ConcordError: something needed for the start is missing, or a step failed; the message names the step and its
            log.
    """
    settings, cluster = load_settings(args.params), load_cluster(args.cluster)
    image = chosen_image(args.image, cluster)
    environment = passed_environment(cluster, args.env)
    check_tracking_uri(environment)
    data_hash = checked_data(args)
    client = docker_client()
    identity = image_id(client, image)
    client.close()
    out, state = args.out.resolve(), (args.state or args.out / ".checkpoints").resolve()
    state.mkdir(parents=True, exist_ok=True)
    run_id = str(uuid.uuid4())
    console.print(f"run {run_id}, image {image} ({identity[:19]}), data {data_hash or args.data_uri}", markup=False)
    options: dict[str, Any] = container_options(args.network, args.gpus)
    options["environment"] = {**environment, RUN_ID: run_id}
    with output_lock(state / "run"), scratch_folder(out / f".scratch-{run_id}") as scratch:
        volumes = {
            **({str(args.data.resolve()): {"bind": RAW, "mode": "ro"}} if data_hash else {}),
            str(state): {"bind": STATE, "mode": "rw"},
            str(scratch): {"bind": "/tmp", "mode": "rw"},
            **dict(parse_volume(text) for text in args.volume),
        }
        local_run = LocalRun(run_id, volumes, shared_memory_sizes(cluster))
        package = out / "pipeline.yaml"
        here = on_this_machine(cluster, args.retries)
        compile_pipeline(settings, here, image, data_hash, package, args.cache == "on", find_newest=not data_hash)
        run_pipeline(package, args.data_uri or RAW, out, local_run, options)
    data = {"data_hash": data_hash} if data_hash else {"data_uri": args.data_uri}
    return report(local_run, settings, {"image": image, "image_id": identity, **data})


def checked_data(args: argparse.Namespace) -> str:
    """Returns the hash of the raw input in --data; empty if a first step finds the newest folder of --data-uri.

    Raises:
        ConcordError: there is no such folder, or --data-uri is no pattern.
    """
    if args.data_uri is None:
        if not args.data.is_dir():
            raise ConcordError(f"{args.data}: no such folder. Create it (make data) or name it with --data.")
        return str(dvc_hash(args.data))
    try:
        location = parse_location(args.data_uri)
    except ValueError as error:
        raise ConcordError(f"--data-uri: {error}.") from None
    if isinstance(location, Path) or not location.is_pattern:
        raise ConcordError(f"--data-uri {args.data_uri}: needs a pattern, s3://bucket/gauges-*. --data names a folder.")
    return ""


def passed_environment(cluster: Cluster, extra: list[str]) -> dict[str, str]:
    """Returns the variables of this environment that the containers get.

    Args:
        cluster: its secrets name variables, which are passed if they are set here.
        extra: names of further variables, from --env.

    Raises:
        ConcordError: a variable in `extra` is not set.
    """
    for name in extra:
        if name not in os.environ:
            raise ConcordError(f"--env {name}: not set here.")
    names = {*PASSED_VARIABLES, *(name for secret in cluster.secrets for name in secret.env), *extra}
    return {name: os.environ[name] for name in sorted(names) if name in os.environ}


def check_tracking_uri(environment: Mapping[str, str]) -> None:
    """Raises ConcordError unless the containers use an MLflow server; a file store would vanish with its container."""
    if not environment.get("MLFLOW_TRACKING_URI", "").startswith(("http://", "https://")):
        raise ConcordError(
            "MLFLOW_TRACKING_URI: must name an MLflow server that containers can reach. `make up` starts one; then "
            "`set -a; . docker/services.env; set +a`."
        )


def container_options(network: str, gpus: str | None) -> dict[str, Any]:
    """Returns Docker's options for every container: this user, no capabilities, a read-only root.

    Raises:
        ConcordError: `gpus` is neither `all` nor a number.
    """
    from docker.types import DeviceRequest

    options: dict[str, Any] = {
        "network_mode": network,
        "user": f"{os.getuid()}:{os.getgid()}",  # so that this user owns the outputs
        "read_only": True,
        "init": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
    }
    if gpus is not None:
        if gpus != "all" and not gpus.isdecimal():
            raise ConcordError(f"--gpus {gpus}: must be `all` or a number.")
        count = -1 if gpus == "all" else int(gpus)
        options["device_requests"] = [DeviceRequest(count=count, capabilities=[["gpu"]])]
    return options


def parse_volume(text: str) -> tuple[str, dict[str, str]]:
    """Parses `HERE:THERE[:ro]` into an entry for the Docker client's `volumes`.

    Raises:
        ConcordError: the format is wrong, or HERE does not exist.
    """
    parts = text.split(":")
    if len(parts) not in (2, 3) or not parts[1].startswith("/") or parts[2:] not in ([], ["ro"], ["rw"]):
        raise ConcordError(
            f"--volume {text}: must be HERE:THERE or HERE:THERE:ro, where THERE is an absolute path in the container."
        )
    here = Path(parts[0]).resolve()
    if not here.exists():
        raise ConcordError(f"--volume {text}: {here} does not exist.")
    return str(here), {"bind": parts[1], "mode": parts[2] if parts[2:] else "rw"}


def shared_memory_sizes(cluster: Cluster) -> dict[str, int]:
    """Returns step -> bytes of /dev/shm, for the steps whose settings name a size."""
    sizes = {name: cluster.pod(name).shared_memory for name in STEPS}
    return {name: quantity_bytes(size) for name, size in sizes.items() if size}


def on_this_machine(cluster: Cluster, retries: int) -> Cluster:
    """Returns the cluster's settings with one node for each step, and this many retries, one second apart."""
    tree = cluster.tree()
    for pod in tree["steps"].values():
        pod |= {"retries": retries, **({"nodes": 1} if "nodes" in pod else {})}
    tree["backoff"] = {"seconds": 1, "factor": 1}
    return Cluster.model_validate(tree)


@contextlib.contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """Creates a folder and removes it at the end of the block."""
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run_pipeline(package: Path, data_uri: str, out: Path, local_run: LocalRun, options: Mapping[str, Any]) -> None:
    """Runs the compiled pipeline until it ends or a step fails for the last time.

    Raises:
        ConcordError: the Docker engine refused a container.
    """
    from kfp import components, local

    import docker

    # SIGTERM must raise an exception, so that containers are removed then too.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), step_containers(local_run):
            warnings.simplefilter("ignore")  # kfp warns about settings that only a cluster uses
            local.init(local.DockerRunner(**options), pipeline_root=str(out), raise_on_error=False)
            components.load_component_from_file(str(package))(data_uri=data_uri)
    except docker.errors.DockerException as error:
        raise ConcordError(f"Docker refused a container: {getattr(error, 'explanation', None) or error}") from None
    except KeyboardInterrupt:
        console.print("stopped, and the container is removed; run it again, and training resumes from its checkpoint")
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def report(local_run: LocalRun, settings: Settings, inputs: Mapping[str, str]) -> int:
    """Prints a table of the steps and writes run.json to the run's folder.

    Args:
        local_run: the run, with all its attempts.
        settings: the experiment.
        inputs: what else run.json records: image, image_id, data_hash.

    Returns:
        0.

    Raises:
        ConcordError: a step failed or was never started.
    """
    last: dict[str, ContainerRun] = {attempt.step: attempt for attempt in local_run.attempts}
    names = [*(name for name in last if name not in STEPS), *STEPS]
    failed = [name for name in names if name not in last or last[name].errors]
    table = Table("step", "state", "attempts", "seconds")
    table.add_column("log", overflow="fold")
    for name in names:
        if name not in last:
            table.add_row(name, "not started", "0", "", "")
            continue
        attempt = last[name]
        state = "[red]failed[/]" if attempt.errors else "[green]done[/]"
        seconds = sum(each.seconds for each in local_run.attempts if each.step == name)
        table.add_row(name, state, str(attempt.attempt), f"{seconds:.0f}", str(attempt.log))
    console.print(table)
    if not last:
        raise ConcordError("no step was started.")
    folder = local_run.attempts[0].folder.parent
    write_json(folder / "run.json", run_record(local_run, settings, inputs, not failed))
    if not failed:
        console.print(f"done: {folder}", markup=False)
        return 0
    first = failed[0]
    if first not in last:
        raise ConcordError(f"{first}: never started, though its inputs exist. See {folder}/run.json.")
    attempt = last[first]
    number = f", attempt {attempt.attempt}" if attempt.attempt > 1 else ""
    raise ConcordError(f"{first}{number}: {'; '.join(attempt.errors)}. Its log: {attempt.log}")


def run_record(local_run: LocalRun, settings: Settings, inputs: Mapping[str, str], done: bool) -> dict[str, Any]:
    """Returns the content of run.json: inputs, settings without secrets, every attempt, and the outputs' hashes."""
    succeeded = {attempt.step: attempt for attempt in local_run.attempts if not attempt.errors}
    return {
        "run_id": local_run.run_id,
        "done": done,
        **inputs,
        "params": masked_json(settings.tree(), environment=True),
        "attempts": [
            {
                "step": attempt.step,
                "exit_code": attempt.exit_code,
                "errors": [masked(error) for error in attempt.errors],
                "log": str(attempt.log),
            }
            for attempt in local_run.attempts
        ],
        "outputs": {
            name: {
                port: {"path": str(attempt.folder / port), "dvc_hash": digest}
                for port, digest in reported_hashes(STEPS[name], attempt.folder).items()
            }
            for name, attempt in succeeded.items()
            if name in STEPS
        },
    }
