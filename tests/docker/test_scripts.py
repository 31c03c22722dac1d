"""The scripts in docker/, as far as they need no Docker engine."""

import os
import re
import shutil
import socket
import stat
import subprocess
from pathlib import Path

import pytest

from tests.support.containers import ROOT, run

NEED_AN_ENGINE = pytest.mark.parametrize(
    "command", [("docker/build", "cpu"), ("docker/base",), ("docker/services", "up")]
)


@NEED_AN_ENGINE
def test_missing_engine_is_reported_in_one_line(command: tuple[str, ...], tmp_path: Path) -> None:
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "DOCKER_HOST": f"unix://{tmp_path}/none"}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "docker/engine" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@NEED_AN_ENGINE
@pytest.mark.skipif(shutil.which("docker") is None, reason="no docker client here")
def test_engine_without_permission_is_distinguished_from_a_missing_one(
    command: tuple[str, ...], tmp_path: Path
) -> None:
    address = tmp_path / "docker.sock"
    # Root can open any socket, unless it lacks this capability.
    bounded = ["setpriv", "--bounding-set=-dac_override"] if os.getuid() == 0 else []
    with socket.socket(socket.AF_UNIX) as forbidden:
        forbidden.bind(str(address))
        forbidden.listen()
        address.chmod(0)
        done = subprocess.run(
            [*bounded, *command], cwd=ROOT, env={**os.environ, "DOCKER_HOST": f"unix://{address}"}, capture_output=True,
            text=True,
        )  # fmt: skip
    assert done.returncode == 1
    assert "permission denied" in done.stderr
    assert "usermod -aG docker" in done.stderr
    assert "docker/engine" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


def programs(folder: Path, **scripts: str) -> dict[str, str]:
    """Writes shell scripts; returns an environment whose PATH finds them before all other programs."""
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        (folder / name).chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}


# A machine on which this user is not root and has sudo, but nothing is really started or installed.
NOT_ROOT = {
    "id": "echo 1000",
    "sudo": 'shift; case $1 in bash | systemctl | apt-get) exit 0 ;; esac; AS_ROOT=1 exec "$@"',
    "dockerd": "exit 1",
}
REFUSED = "echo permission denied >&2; exit 1"
ONLY_FOR_ROOT = f'[ -n "${{AS_ROOT:-}}" ] || {{ {REFUSED}; }}'


def engine_script(environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["docker/engine"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=30, check=False
    )


def test_engine_that_only_answers_root_is_reported_at_once(tmp_path: Path) -> None:
    done = engine_script(programs(tmp_path, docker=ONLY_FOR_ROOT, **NOT_ROOT))
    assert done.returncode == 1
    assert "runs, but this user has no access (permission denied)" in done.stderr
    assert 'sudo usermod -aG docker "$USER"' in done.stderr


def test_engine_that_only_answers_root_after_its_start_is_reported(tmp_path: Path) -> None:
    """Root gets an answer from the third call on, which is in the waiting loop."""
    counted = f'echo >> {tmp_path}/asked; [ "$(wc -l < {tmp_path}/asked)" -gt 2 ] || exit 1'
    done = engine_script(programs(tmp_path, docker=f"{ONLY_FOR_ROOT}; {counted}", **NOT_ROOT))
    assert done.returncode == 1
    assert "runs, but this user has no access (permission denied)" in done.stderr
    assert len((tmp_path / "asked").read_text()) == 3


def test_without_root_or_sudo_no_engine_is_installed(tmp_path: Path) -> None:
    done = engine_script(programs(tmp_path, docker=REFUSED, **{**NOT_ROOT, "sudo": "exit 1"}))
    assert done.returncode == 1
    assert "no Docker engine answers (permission denied)" in done.stderr
    assert "needs root, or passwordless sudo" in done.stderr


def test_sizes_are_recorded_without_gnu_tools(tmp_path: Path) -> None:
    environment = programs(tmp_path, docker="head -c 3000000 /dev/urandom", numfmt="exit 127")
    table = tmp_path / "images.md"
    for commit in ("1" * 40, "2" * 40 + "-dirty"):
        command = ["docker/record", str(table), "concord:x", "base:1", "1784512345", commit]
        subprocess.run(command, cwd=ROOT, env=environment, check=True)
    (line,) = [line for line in table.read_text().splitlines() if line.startswith("| concord:x")]
    assert line.startswith("| concord:x | 1.78GB | 3.00MB | base:1 | 222222222222-dirty | ")


SECRETS = {
    "POSTGRES_PASSWORD", "S3_OWNER_SECRET", "MLFLOW_S3_SECRET", "DVC_S3_SECRET", "MLFLOW_ADMIN_PASSWORD",
    "MLFLOW_SESSION_SECRET",
}  # fmt: skip


def test_secrets_are_random_private_and_not_overwritten(tmp_path: Path) -> None:
    secrets = []
    for name in ("a.env", "b.env"):
        environment = {"ENV_FILE": str(tmp_path / name)}
        run("docker/services", "env", environment=environment)
        first = (tmp_path / name).read_text()
        run("docker/services", "env", environment=environment)
        assert (tmp_path / name).read_text() == first
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
        lines = [line.split("=", 1) for line in first.splitlines() if line and not line.startswith("#")]
        secrets.append({name: value for name, value in lines if name in SECRETS})
    assert set(secrets[0]) == SECRETS
    values = [value for each in secrets for value in each.values()]
    assert len(set(values)) == len(values)
    assert all(len(value) == 32 and value.isalnum() for value in values)


def test_variables_of_a_later_release_are_added(tmp_path: Path) -> None:
    file = tmp_path / "services.env"
    run("docker/services", "env", environment={"ENV_FILE": str(file)})
    new = ("MLFLOW_ADMIN_PASSWORD=", "MLFLOW_TRACKING_PASSWORD=")
    own = "# DVC_S3_KEY=mine\nBIND=0.0.0.0\n"
    kept = [line for line in file.read_text().splitlines(keepends=True) if not line.startswith((*new, "DVC_S3_KEY="))]
    file.write_text("".join(kept) + own)
    said = run("docker/services", "env", environment={"ENV_FILE": str(file)})
    assert said == f"{file}: added what this release needs: MLFLOW_ADMIN_PASSWORD MLFLOW_TRACKING_PASSWORD"
    before, _, added = file.read_text().rpartition("\n\n")
    assert before + "\n" == "".join(kept) + own
    assert re.fullmatch(r"MLFLOW_ADMIN_PASSWORD=\w{32}\nMLFLOW_TRACKING_PASSWORD=\$\{MLFLOW_ADMIN_PASSWORD\}\n", added)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_example_has_no_secrets_and_git_ignores_the_file() -> None:
    example = (ROOT / "docker" / "services.env.example").read_text()
    values = dict(line.split("=", 1) for line in example.splitlines() if line and not line.startswith("#"))
    assert {name for name, value in values.items() if not value} == SECRETS
    assert values["MLFLOW_TRACKING_PASSWORD"] == "${MLFLOW_ADMIN_PASSWORD}"
    assert run("git", "check-ignore", "docker/services.env") == "docker/services.env"


def test_every_variable_of_compose_is_in_the_example() -> None:
    """Required variables are set in the example; those with a default are named in its comments."""
    example = (ROOT / "docker" / "services.env.example").read_text()
    composed = (ROOT / "docker" / "compose.yaml").read_text()
    for name, rest in re.findall(r"\$\{(\w+)(:[?-])", composed):
        assert re.search(rf"^{name}=" if rest == ":?" else rf"\b{name}\b", example, re.MULTILINE), name


@pytest.mark.parametrize("command", [("docker/build", "tpu"), ("docker/build", "cpu", "--base"), ("docker/services",)])
def test_usage_error_prints_the_usage(command: tuple[str, ...]) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"{command[0]} " in done.stderr
