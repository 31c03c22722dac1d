"""The scoring server in its container: a model baked in or fetched at start, good and bad requests, and its end."""

import base64
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support import gray_world
from tests.support.containers import BASE, ROOT, composed, run, services_of
from tests.support.containers import container as compose_container
from tests.support.gray_world import GrayWorld
from tests.support.repository import environment
from tests.support.served import answers, free_port, half_sent, register_version

pytestmark = [pytest.mark.e2e, pytest.mark.docker, pytest.mark.timeout(1800)]

# As on a strict cluster: no root, no capabilities, only /tmp writable.
HARDENED = ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
BUILT_FROM = (
    "components", "docker", "params.yaml", "dvc.yaml", ".dvcignore", ".dockerignore", "pyproject.toml",
    "requirements.lock", "requirements-cpu.lock", "requirements-cuda.lock", "requirements-dev.lock",
)  # fmt: skip
READY_SECONDS = 120


def row_of(image: bytes) -> dict[str, str]:
    """A row of a request."""
    return {"image": base64.b64encode(image).decode()}


@dataclass(frozen=True)
class Container:
    """A running container and the address of its server."""

    name: str
    url: str

    def post(self, *images: bytes) -> tuple[int, Any]:
        """Status and answer of a request for readings."""
        body = json.dumps({"dataframe_records": [row_of(image) for image in images]}).encode()
        request = urllib.request.Request(f"{self.url}/invocations", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def title(self) -> str:
        """What is served."""
        with urllib.request.urlopen(f"{self.url}/model", timeout=10) as answer:
            return str(json.load(answer)["title"])

    def state(self, field: str) -> str:
        """A field of the container's state, as Docker knows it."""
        return run("docker", "inspect", "--format", f"{{{{.State.{field}}}}}", self.name)


@pytest.fixture(scope="module")
def gray(tmp_path_factory: pytest.TempPathFactory) -> GrayWorld:
    return gray_world.make(tmp_path_factory.mktemp("gray"))


@pytest.fixture(scope="module")
def package(gray: GrayWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a registered version."""
    root = tmp_path_factory.mktemp("store")
    register(gray, root, {"MLFLOW_TRACKING_URI": f"sqlite:///{root}/mlflow.db"})
    (found,) = (path.parent for path in root.glob("mlruns/**/MLmodel"))
    return found


def register(gray: GrayWorld, folder: Path, variables: Mapping[str, str]) -> None:
    """Registers the model as champion in the store that the variables name; local artifacts go into the folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, value in variables.items():
            patch.setenv(name, value)
        patch.delenv("MLFLOW_RUN_ID", raising=False)
        assert register_version(gray.settings, gray.grpo, gray.settings.reader(0.0)) == "1"


def built(folder: Path, tag: str) -> str:
    """Builds the target `serve` from a copy of the checkout's files."""
    run(str(folder / "docker" / "build"), "serve", "--base", BASE, "--tag", tag)
    return tag


@pytest.fixture(scope="module")
def checkout(image: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the files that an image is built from, without a model in it."""
    folder = tmp_path_factory.mktemp("checkout")
    kept = shutil.ignore_patterns("__pycache__", "model", "services.env")
    for name in BUILT_FROM:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=kept)
        else:
            shutil.copy2(ROOT / name, folder)
    (folder / "docker" / "model").mkdir()
    shutil.copy2(ROOT / "docker" / "model" / "README.md", folder / "docker" / "model")
    return folder


@pytest.fixture(scope="module")
def without_model(checkout: Path) -> Iterator[str]:
    tag = built(checkout, f"concord:test-serve-{os.getpid()}")
    yield tag
    run("docker", "rmi", tag)


@pytest.fixture(scope="module")
def with_model(checkout: Path, without_model: str, package: Path) -> Iterator[str]:
    shutil.copytree(package, checkout / "docker" / "model", dirs_exist_ok=True)
    for path in (checkout / "docker" / "model").rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)  # the checkout of a user with a strict umask
    tag = built(checkout, f"concord:test-baked-{os.getpid()}")
    yield tag
    run("docker", "rmi", tag)


@contextmanager
def container(tag: str, *options: str, command: Sequence[str] = (), port: int | None = None) -> Iterator[Container]:
    """Starts a hardened container; yields when its server answers.

    Args:
        options: of `docker run`.
        command: in place of the image's own.
        port: that the command listens on, in the host's network; None: the image's, published on another one.
    """
    name, outside = f"concord-serve-{os.getpid()}-{free_port()}", port or free_port()
    network = ["--network", "host"] if port else ["-p", f"127.0.0.1:{outside}:8080"]
    options = (*HARDENED, *network, "-e", "OMP_NUM_THREADS=1", *options)
    run("docker", "run", "-d", "--name", name, *options, tag, *command)
    found = Container(name, f"http://127.0.0.1:{outside}")
    try:
        end = time.monotonic() + READY_SECONDS
        while not answers(f"{found.url}/ping"):
            assert found.state("Running") == "true", run("docker", "logs", name)
            assert time.monotonic() < end, run("docker", "logs", name)
            time.sleep(0.2)
        yield found
    finally:
        run("docker", "rm", "-f", name)


def test_baked_model_answers_and_the_container_ends_after_the_request_in_progress(with_model: str) -> None:
    with container(with_model, "--user", "12345:12345") as served:
        status, answer = served.post(gray_world.gray(20, 1), gray_world.gray(80, 2), b"no image")
        assert status == 200
        assert [row["value"] for row in answer["predictions"]] == [20, 80, None]
        assert "not an image in a known format" in answer["predictions"][2]["error"]
        status, answer = served.post(b"no image")
        assert (status, answer.keys()) == (400, {"error_code", "message"})
        assert answer["message"].startswith("no image can be read; the first: not an image")
        end = time.monotonic() + READY_SECONDS
        while served.state("Health.Status") != "healthy":
            assert time.monotonic() < end
            time.sleep(0.5)
        finish = half_sent(served.url, {"dataframe_records": [row_of(gray_world.gray(40, 3))]})
        with subprocess.Popen(["docker", "stop", "--time", "60", served.name]):
            time.sleep(1)
            assert served.state("Running") == "true"
            status, answer = finish()
        assert (status, answer["predictions"][0]["value"]) == (200, 40)
        assert served.state("ExitCode") == "0"
        log = run("docker", "logs", served.name)
        assert log.endswith("stopped")
        assert "Traceback" not in log


def test_a_container_ends_at_once_while_its_model_is_loaded(with_model: str) -> None:
    name = f"concord-serve-{os.getpid()}-early"
    run("docker", "run", "-d", "--name", name, *HARDENED, with_model)
    try:
        time.sleep(3)
        started = time.monotonic()
        run("docker", "stop", "--time", "60", name)
        assert time.monotonic() - started < 20
    finally:
        run("docker", "rm", "-f", name)


def test_model_is_fetched_at_start(without_model: str, tmp_path: Path, gray: GrayWorld) -> None:
    name, inside, port = gray.settings.registered_model, free_port(), free_port()
    with mlflow_server(tmp_path, port):
        register(gray, tmp_path, {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"})
        options = ["-e", f"MLFLOW_TRACKING_URI=http://127.0.0.1:{port}", "-e", f"CONCORD_MODEL={name}@champion"]
        command = ["python", "-m", "components", "serve", "--host", "127.0.0.1", "--port", str(inside)]
        with container(without_model, *options, command=command, port=inside) as served:
            assert served.title() == f"{name} version 1"
            assert served.post(gray_world.gray(60, 3))[1]["predictions"][0]["value"] == 60
            assert "Traceback" not in run("docker", "logs", served.name)


@contextmanager
def mlflow_server(folder: Path, port: int) -> Iterator[None]:
    """Starts MLflow's server with an empty store in a folder."""
    command = [
        sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(port),
        "--backend-store-uri", f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination", str(folder / "artifacts"),
    ]  # fmt: skip
    variables = environment({"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"})
    with (folder / "mlflow.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=variables, stdout=log, stderr=log)
    try:
        end = time.monotonic() + READY_SECONDS
        while not answers(f"http://127.0.0.1:{port}/health"):
            assert time.monotonic() < end, (folder / "mlflow.log").read_text()
            time.sleep(0.2)
        yield
    finally:
        process.terminate()
        process.wait()


def test_compose_serves_the_champion_of_its_mlflow(
    without_model: str, tmp_path: Path, shared_folder: Path, gray: GrayWorld
) -> None:
    """Until there is a champion, the container is restarted."""
    extra = {"COMPOSE_PROFILES": "serve", "SERVE_IMAGE": without_model, "SERVE_PORT": str(free_port())}
    with composed(tmp_path, shared_folder, extra=extra) as environment:
        register(gray, tmp_path, services_of(environment).environment())
        served = Container(
            compose_container(environment["PROJECT"], "serve"), f"http://127.0.0.1:{environment['SERVE_PORT']}"
        )
        end = time.monotonic() + 2 * READY_SECONDS
        while not answers(f"{served.url}/ping"):
            assert time.monotonic() < end, run("docker", "logs", served.name)
            time.sleep(1)
        assert served.title() == f"{gray.settings.registered_model} version 1"
        assert served.post(gray_world.gray(20, 3))[1]["predictions"][0]["value"] == 20
        assert "no version in the registry at http://mlflow:5000" in run("docker", "logs", served.name)


def test_without_a_model_the_container_says_so(without_model: str) -> None:
    command = ["docker", "run", "--rm", *HARDENED, "--network", "none", "-e", "MLFLOW_TRACKING_URI=sqlite:////tmp/m.db"]
    done = subprocess.run([*command, without_model], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no version in the registry at sqlite:////tmp/m.db" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
