"""Shared by tests with a Docker engine: the project's image, built once, and the services in containers."""

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from components.shared.io.locks import output_lock
from tests.support.services import Services, free_ports

ROOT = Path(__file__).parents[2]
BASE = os.environ.get("CONCORD_BASE", "concord-base:bookworm")
TAG = "concord:test"


def engine() -> str | None:
    """Returns the Docker engine's version; None if no engine answers."""
    try:
        done = subprocess.run(
            ["docker", "version", "--format", "{{.Server.Version}}"], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@cache
def image(folder: Path) -> str:
    """Builds the cpu image from this checkout on CONCORD_BASE, once for all processes of a test run; returns its tag.

    Docker's build cache is used.

    Args:
        folder: a folder that the processes share.
    """
    built = folder / f"image-{os.environ.get('PYTEST_XDIST_TESTRUNUID', os.getpid())}"
    with output_lock(folder / "engine"):
        if not built.exists():
            run("docker/base", BASE)
            run("docker/build", "cpu", "--base", BASE, "--tag", TAG)
            built.touch()
    return TAG


@contextmanager
def composed(
    folder: Path, shared: Path, script: str = "docker/services", extra: Mapping[str, str] | None = None
) -> Iterator[dict[str, str]]:
    """Starts the services of docker/compose.yaml on free ports; stops them at the end and deletes their data.

    Args:
        folder: for the file with their secrets.
        shared: a folder that the processes of a test run share, with a lock, so that only one builds images at a time.
        script: docker/services, or a copy of it in a copy of docker/.
        extra: further environment variables for the script.

    Yields:
        The environment of docker/services: project name, images, ports, the file with the secrets.
    """
    tag = image(shared)
    mlflow_port, s3_port = free_ports(2)
    environment = {
        "PROJECT": f"concord-test-{secrets.token_hex(4)}",
        "ENV_FILE": str(folder / "services.env"),
        "WITHOUT_REGISTRY": "1",
        "BASE": BASE,
        "MLFLOW_IMAGE": tag,
        "MLFLOW_PORT": str(mlflow_port),
        "S3_PORT": str(s3_port),
        **(extra or {}),
    }
    try:
        with output_lock(shared / "engine"):
            run(script, "up", environment=environment)
        yield environment
    finally:
        run(script, "down", "--volumes", environment=environment)


def services_of(environment: dict[str, str]) -> Services:
    """Returns the addresses and keys of the services. The database is reached at its container's address."""
    lines = Path(environment["ENV_FILE"]).read_text(encoding="utf-8").splitlines()
    variables = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    database = container(environment["PROJECT"], "postgres")
    networks = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
    address = run("docker", "inspect", "--format", networks, database)
    return Services(
        tracking_uri=f"http://127.0.0.1:{environment['MLFLOW_PORT']}",
        database_uri=f"postgresql+psycopg://mlflow:{variables['POSTGRES_PASSWORD']}@{address}/mlflow",
        s3_url=f"http://127.0.0.1:{environment['S3_PORT']}",
        owner=(variables["S3_OWNER_KEY"], variables["S3_OWNER_SECRET"]),
        mlflow=(variables["MLFLOW_S3_KEY"], variables["MLFLOW_S3_SECRET"]),
        dvc=(variables["DVC_S3_KEY"], variables["DVC_S3_SECRET"]),
        login=(variables["MLFLOW_TRACKING_USERNAME"], variables["MLFLOW_ADMIN_PASSWORD"]),
    )


def container(project: str, service: str) -> str:
    """Returns the id of a service's container; empty if there is none."""
    label = "label=com.docker.compose"
    return run(
        "docker", "ps", "-q", "--filter", f"{label}.project={project}", "--filter", f"{label}.service={service}"
    )  # fmt: skip


def neighbour(composition: dict[str, str], script: str, *arguments: str) -> dict[str, Any]:
    """Runs a Python script in a further container on the services' network; returns the JSON in its last line."""
    network = f"{composition['PROJECT']}_default"
    image = composition["MLFLOW_IMAGE"]
    printed = run("docker", "run", "--rm", "--network", network, image, "python", "-c", script, *arguments)
    found: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return found


def run(*command: str, environment: dict[str, str] | None = None) -> str:
    """Runs a command in the project's root and returns its output; raises RuntimeError with the output if it fails."""
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHON": sys.executable, **(environment or {})}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout[-4000:]}")
    return done.stdout.strip()
