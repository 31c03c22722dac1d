"""The scripts in docker/, where no engine is needed."""

import os
import shutil
import socket
import stat
import subprocess
from pathlib import Path

import pytest

from tests.support.containers import ROOT, run

NEED_AN_ENGINE = pytest.mark.parametrize(
    "words", [("docker/build", "cpu"), ("docker/base",), ("docker/services", "up")]
)


@NEED_AN_ENGINE
def test_without_an_engine_it_says_so(words: tuple[str, ...], tmp_path: Path) -> None:
    done = subprocess.run(
        words, cwd=ROOT, env={**os.environ, "DOCKER_HOST": f"unix://{tmp_path}/none"}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "docker/engine" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@NEED_AN_ENGINE
@pytest.mark.skipif(shutil.which("docker") is None, reason="no docker client here")
def test_an_engine_that_is_there_for_others_is_told_from_none(words: tuple[str, ...], tmp_path: Path) -> None:
    address = tmp_path / "docker.sock"
    # Root opens everything, but for want of this right.
    bounded = ["setpriv", "--bounding-set=-dac_override"] if os.getuid() == 0 else []
    with socket.socket(socket.AF_UNIX) as closed:
        closed.bind(str(address))
        closed.listen()
        address.chmod(0)
        done = subprocess.run(
            [*bounded, *words], cwd=ROOT, env={**os.environ, "DOCKER_HOST": f"unix://{address}"}, capture_output=True,
            text=True,
        )  # fmt: skip
    assert done.returncode == 1
    assert "permission denied" in done.stderr
    assert "usermod -aG docker" in done.stderr
    assert "docker/engine" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


def programs(folder: Path, **scripts: str) -> dict[str, str]:
    """An environment in which these names are shell scripts, before whatever else there is."""
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        (folder / name).chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}


# A machine where this user is not root and has sudo, but nothing is started or installed for real.
NOT_ROOT = {
    "id": "echo 1000",
    "sudo": 'shift; case $1 in bash | systemctl | apt-get) exit 0 ;; esac; AS_ROOT=1 exec "$@"',
    "dockerd": "exit 1",
}
REFUSED = "echo permission denied >&2; exit 1"
FOR_ROOT_ALONE = f'[ -n "${{AS_ROOT:-}}" ] || {{ {REFUSED}; }}'


def engine_script(environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["docker/engine"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=30, check=False
    )


def test_an_engine_for_root_alone_ends_the_wait_at_once(tmp_path: Path) -> None:
    done = engine_script(programs(tmp_path, docker=FOR_ROOT_ALONE, **NOT_ROOT))
    assert done.returncode == 1
    assert "runs, but not for this user (permission denied)" in done.stderr
    assert 'sudo usermod -aG docker "$USER"' in done.stderr


def test_so_does_one_that_only_starts_here(tmp_path: Path) -> None:
    """Root is answered from the third time on: in the loop that waits."""
    counted = f'echo >> {tmp_path}/asked; [ "$(wc -l < {tmp_path}/asked)" -gt 2 ] || exit 1'
    done = engine_script(programs(tmp_path, docker=f"{FOR_ROOT_ALONE}; {counted}", **NOT_ROOT))
    assert done.returncode == 1
    assert "runs, but not for this user (permission denied)" in done.stderr
    assert len((tmp_path / "asked").read_text()) == 3


def test_without_root_and_sudo_it_does_not_try(tmp_path: Path) -> None:
    done = engine_script(programs(tmp_path, docker=REFUSED, **{**NOT_ROOT, "sudo": "exit 1"}))
    assert done.returncode == 1
    assert "no Docker engine answers (permission denied)" in done.stderr
    assert "takes root, or sudo without a password" in done.stderr


def test_sizes_are_recorded_without_gnu_s_tools(tmp_path: Path) -> None:
    environment = programs(tmp_path, docker="head -c 3000000 /dev/urandom", numfmt="exit 127")
    table = tmp_path / "images.md"
    for commit in ("1" * 40, "2" * 40 + "-dirty"):
        words = ["docker/record", str(table), "concord:x", "base:1", "1784512345", commit]
        subprocess.run(words, cwd=ROOT, env=environment, check=True)
    (line,) = [line for line in table.read_text().splitlines() if line.startswith("| concord:x")]
    assert line.startswith("| concord:x | 1.78GB | 3.00MB | base:1 | 222222222222-dirty | ")


def test_secrets_are_random_private_and_kept(tmp_path: Path) -> None:
    found = []
    for name in ("a.env", "b.env"):
        where = {"ENV_FILE": str(tmp_path / name)}
        run("docker/services", "env", environment=where)
        first = (tmp_path / name).read_text()
        run("docker/services", "env", environment=where)
        assert (tmp_path / name).read_text() == first
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
        lines = [line.split("=", 1) for line in first.splitlines() if line and not line.startswith("#")]
        found.append({name: value for name, value in lines if name.endswith(("_SECRET", "_PASSWORD"))})
    assert set(found[0]) == {"POSTGRES_PASSWORD", "S3_OWNER_SECRET", "MLFLOW_S3_SECRET", "DVC_S3_SECRET"}
    every = [value for one in found for value in one.values()]
    assert len(set(every)) == len(every)
    assert all(len(value) == 32 and value.isalnum() for value in every)


def test_the_example_holds_no_secret_and_the_file_is_git_s_to_ignore() -> None:
    example = (ROOT / "docker" / "services.env.example").read_text()
    values = dict(line.split("=", 1) for line in example.splitlines() if line and not line.startswith("#"))
    assert {value for name, value in values.items() if name.endswith(("_SECRET", "_PASSWORD"))} == {""}
    assert run("git", "check-ignore", "docker/services.env") == "docker/services.env"


def test_every_value_that_compose_asks_for_is_in_the_example() -> None:
    """But for those that it has a default for; the example names these in its comments."""
    import re

    example = (ROOT / "docker" / "services.env.example").read_text()
    composed = (ROOT / "docker" / "compose.yaml").read_text()
    for name, rest in re.findall(r"\$\{(\w+)(:[?-])", composed):
        assert re.search(rf"^{name}=" if rest == ":?" else rf"\b{name}\b", example, re.MULTILINE), name


@pytest.mark.parametrize("words", [("docker/build", "tpu"), ("docker/build", "cpu", "--base"), ("docker/services",)])
def test_a_wrong_command_line_is_told_the_right_one(words: tuple[str, ...]) -> None:
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"{words[0]} " in done.stderr
