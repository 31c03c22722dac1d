"""What tests with a Docker engine share: the project's image, built once, and the composed services."""

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from components.shared.io.locks import output_lock
from tests.support.services import Services, free_ports

ROOT = Path(__file__).parents[2]
BASE = os.environ.get("CONCORD_BASE", "concord-base:bookworm")
TAG = "concord:test"


def engine() -> str | None:
    """The Docker engine's version; None where none answers."""
    try:
        found = subprocess.run(
            ["docker", "version", "--format", "{{.Server.Version}}"], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return found.stdout.strip() if found.returncode == 0 else None


@cache
def image(folder: Path) -> str:
    """The tag of the cpu image, built from this checkout on CONCORD_BASE, once for all processes of a test run.

    Layers that are there already are taken.

    Args:
        folder: one that the processes share.
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
    folder: Path, shared: Path, script: str = "docker/services", further: Mapping[str, str] | None = None
) -> Iterator[dict[str, str]]:
    """The services of docker/compose.yaml on free ports, under a name of their own; gone at the end with all they hold.

    Args:
        folder: for the file with their secrets.
        shared: one that the processes of a test run share: they build images one after the other.
        script: docker/services, or a copy among copies of its neighbours.
        further: what the script is told besides.

    Yields:
        What docker/services is told of them: built images, ports, the file.
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
        **(further or {}),
    }
    try:
        with output_lock(shared / "engine"):
            run(script, "up", environment=environment)
        yield environment
    finally:
        run(script, "down", "--volumes", environment=environment)


def services_of(environment: dict[str, str]) -> Services:
    """Where the composed services are. The database has no port of this machine: it is reached at its container's."""
    lines = Path(environment["ENV_FILE"]).read_text(encoding="utf-8").splitlines()
    given = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    database = container(environment["PROJECT"], "postgres")
    networks = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
    address = run("docker", "inspect", "--format", networks, database)
    return Services(
        tracking_uri=f"http://127.0.0.1:{environment['MLFLOW_PORT']}",
        database_uri=f"postgresql+psycopg://mlflow:{given['POSTGRES_PASSWORD']}@{address}/mlflow",
        s3_url=f"http://127.0.0.1:{environment['S3_PORT']}",
        owner=(given["S3_OWNER_KEY"], given["S3_OWNER_SECRET"]),
        mlflow=(given["MLFLOW_S3_KEY"], given["MLFLOW_S3_SECRET"]),
        dvc=(given["DVC_S3_KEY"], given["DVC_S3_SECRET"]),
    )


def container(project: str, service: str) -> str:
    """The id of a composed service's container."""
    label = "label=com.docker.compose"
    return run(
        "docker", "ps", "-q", "--filter", f"{label}.project={project}", "--filter", f"{label}.service={service}"
    )  # fmt: skip


def run(*words: str, environment: dict[str, str] | None = None) -> str:
    """Runs it in the project's root and gives what it printed; what went wrong stands in the error."""
    done = subprocess.run(
        words, cwd=ROOT, env={**os.environ, "PYTHON": sys.executable, **(environment or {})}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: exit {done.returncode}\n{done.stdout[-4000:]}")
    return done.stdout.strip()
