"""A repository with this checkout's code and a small experiment, whose data is pushed to a DVC remote."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.gauge_world import write_data, write_params

ROOT = Path(__file__).parents[2]
GIT = ("git", "-c", "user.name=A", "-c", "user.email=a@b")
OTHERS = ("MLFLOW_", "AWS_", "CONCORD_", "KFP_", "GIT_", "PYTHON")  # variables that would reach into a test


@dataclass
class Repository:
    """A repository and the environment of its commands.

    Attributes:
        path: its folder; clones lie beside it.
        variables: the environment of every process.
    """

    path: Path
    variables: dict[str, str]

    def call(self, *words: str, cwd: Path, **variables: str) -> str:
        """Output of a command, both streams; fails the test unless it exits with 0."""
        env = {**self.variables, **variables}
        done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def dvc(self, *words: str, cwd: Path, **variables: str) -> str:
        """Output of a DVC command."""
        return self.call(sys.executable, "-m", "dvc", *words, cwd=cwd, **variables)

    def clone(self, name: str) -> Path:
        """A new clone, without data and outputs."""
        place = self.path.parent / name
        self.call("git", "clone", "-q", str(self.path), str(place), cwd=self.path.parent)
        return place


def environment(further: Mapping[str, str]) -> dict[str, str]:
    """This process' environment without the variables that name stores, and with `further`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OTHERS)}
    return {
        **kept,
        **further,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }


def write_code(path: Path) -> None:
    """Copies this checkout's code and settings, without .git, .dvc and outputs."""
    for folder in ("components", "pipelines"):
        shutil.copytree(ROOT / folder, path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("dvc.yaml", ".dvcignore", ".gitignore", "params.yaml"):
        shutil.copy(ROOT / file, path)


def write_repository(path: Path, variables: dict[str, str], remote: str, sections: Mapping[str, Any]) -> Repository:
    """Creates the repository with one commit.

    Args:
        variables: see Repository.
        remote: address of the DVC remote.
        sections: changes of the small experiment's params.yaml.
    """
    made = Repository(path, variables)
    write_code(path)
    (path / ".dvc").mkdir()
    own = (ROOT / ".dvc" / "config").read_text(encoding="utf-8")
    config = f"    remote = there\n['remote \"there\"']\n    url = {remote}\n"
    (path / ".dvc" / "config").write_text(own.partition("[remote")[0] + config, encoding="utf-8")
    write_data(path / "data")
    write_params(path / "params.yaml", **sections)
    made.call(*GIT, "init", "-q", cwd=path)
    made.dvc("add", "-q", "data", cwd=path)
    made.dvc("push", "-q", "data.dvc", cwd=path)
    made.call(*GIT, "add", ".", cwd=path)
    made.call(*GIT, "commit", "-qm", "The experiment", cwd=path)
    return made
