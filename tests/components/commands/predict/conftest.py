"""Photographs of the gray world, and the command on its model."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from components.__main__ import main
from tests.support.gray_world import GrayWorld, gray

LABELS = (20, 40, 60, 80, 80, 20, 60, 40, 80, 20, 50, 70)

Predict = Callable[..., int]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of twelve photographs in the working directory, which is empty but for them."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    names = [f"photos/{k:02d}.png" for k in range(len(LABELS))]
    for k, name in enumerate(names):
        Path(name).write_bytes(gray(LABELS[k], 9000 + k))
    return names


@pytest.fixture(scope="session")
def model(gray: GrayWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the trained model that tests may add files to."""
    folder = tmp_path_factory.mktemp("predict") / "model"
    shutil.copytree(gray.grpo, folder)
    return folder


@pytest.fixture
def predict(gray: GrayWorld, model: Path) -> Predict:
    """Runs the command on the trained model and returns its exit code."""
    return lambda *words: main(["predict", *words, "--model", str(model), "--params", str(gray.params)])
