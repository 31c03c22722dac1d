"""The scripts in docker/, where no engine is needed."""

import os
import stat
import subprocess
from pathlib import Path

import pytest

from tests.containers import ROOT, run


@pytest.mark.parametrize("words", [("docker/build", "cpu"), ("docker/base",), ("docker/services", "up")])
def test_without_an_engine_it_says_so(words: tuple[str, ...], tmp_path: Path) -> None:
    done = subprocess.run(
        words, cwd=ROOT, env={**os.environ, "DOCKER_HOST": f"unix://{tmp_path}/none"}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "docker/engine" in done.stderr
    assert len(done.stderr.splitlines()) == 1


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
