"""What decides a stage changes while the stage runs. DVC hashes it after the command, so the step itself must fail.

A real repository, real DVC, the real command line.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from components.shared.tracking.hashes import dvc_hash
from tests.support.gauge_world import write_data, write_params
from tests.support.repository import Repository, environment, write_repository

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

MANY = {10: 2, 30: 400, 35: 500, 40: 400, 60: 4, 90: 1}  # enough that ingest takes a while


def settings(at: Path, lr: float) -> None:
    write_params(at / "params.yaml", validate={"min_rows_per_shot": 1}, sft={"lr": lr})


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    remote = tmp_path / "remote"
    made = write_repository(tmp_path / "checkout", environment({}), str(remote), {})
    settings(made.path, 0.002)
    return made


def interfered(made: Repository, stage: str, begun: str, change: Callable[[], None]) -> str:
    """Output of `dvc repro STAGE`, which must fail: `change` is called once a path matches `begun`."""
    words = [sys.executable, "-m", "dvc", "repro", stage]
    with open(made.path.parent / "log.txt", "w+", encoding="utf-8") as log:
        with subprocess.Popen(words, cwd=made.path, env=made.variables, stdout=log, stderr=log) as process:
            while process.poll() is None and not list(made.path.glob(begun)):
                time.sleep(0.01)
            change()
        log.seek(0)
        output = log.read()
    assert process.returncode != 0, output
    return " ".join(output.split())


def locked(made: Repository) -> dict[str, dict[str, object]]:
    stages: dict[str, dict[str, object]] = yaml.safe_load((made.path / "dvc.lock").read_text("utf-8"))["stages"]
    return stages


def test_a_setting_that_changes_during_training_fails_the_stage_and_nothing_computed_is_lost(
    repository: Repository,
) -> None:
    path = repository.path
    repository.dvc("repro", "-q", "validate", cwd=path)
    output = interfered(repository, "sft", ".checkpoints/sft/*/checkpoint-3", lambda: settings(path, 0.003))
    assert "sft: changed while the step ran" in output
    assert "params sft.lr: 0.002 at the start, 0.003 now" in output
    assert "sft" not in locked(repository)
    assert not (path / "artifacts" / "sft").exists()
    computed = dvc_hash(path / "artifacts" / "sft.unchecked")
    settings(path, 0.002)
    repository.dvc("repro", "-q", "sft", cwd=path)
    assert dvc_hash(path / "artifacts" / "sft") == computed
    assert not (path / "artifacts" / "sft.unchecked").exists()
    assert locked(repository)["sft"]["params"]["params.yaml"]["sft"]["lr"] == 0.002  # type: ignore[index]
    assert json.loads(repository.dvc("status", "sft", "--json", cwd=path)) == {}


def test_raw_input_that_changes_during_ingest_fails_the_stage_and_keeps_the_earlier_output(
    repository: Repository,
) -> None:
    path = repository.path
    repository.dvc("repro", "-q", "ingest", cwd=path)
    earlier, lock = dvc_hash(path / "artifacts" / "ingest"), (path / "dvc.lock").read_bytes()
    table = path / "data" / "scenes.csv"
    write_data(path / "more", MANY)
    table.write_text((path / "more" / "scenes.csv").read_text("utf-8"), encoding="utf-8")

    def change() -> None:
        with open(table, "a", encoding="utf-8") as file:
            file.write("\n")

    output = interfered(repository, "ingest", "artifacts/.ingest.unchecked.partial", change)
    assert "input data: another content (hash " in output
    assert dvc_hash(path / "artifacts" / "ingest") == earlier
    assert (path / "dvc.lock").read_bytes() == lock
