"""Prediction as a person runs it: processes that are killed, and what they import."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import gray_world
from tests.support.gray_world import GrayWorld

ROOT = Path(__file__).parents[2]
IMAGES = 3000
pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def gray(tmp_path_factory: pytest.TempPathFactory) -> GrayWorld:
    return gray_world.make(tmp_path_factory.mktemp("gray"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of photographs and a cheap way to have many: links to one file."""
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "0000.png").write_bytes(gray_world.gray(60, 1))
    for k in range(1, IMAGES):
        os.link(folder / "0000.png", folder / f"{k:04d}.png")
    return folder


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_that_is_stopped_leaves_the_earlier_output(
    gray: GrayWorld, photos: Path, number: signal.Signals, code: int
) -> None:
    out = photos.parent / "out.csv"
    out.write_text("earlier")
    command = [
        *(sys.executable, "-m", "components", "predict", str(photos), "--out", str(out)),
        *("--model", str(gray.grpo), "--params", str(gray.params)),
    ]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not any(file.stat().st_size for file in photos.parent.glob(".out.csv.*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == code, stderr
    assert out.read_text() == "earlier"
    if number != signal.SIGKILL:
        assert stderr.strip() == "stopped; no output was written"
        assert sorted(os.listdir(photos.parent)) == ["out.csv", "photos"]
        assert subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL).returncode == 0
        assert len(out.read_text().splitlines()) == IMAGES + 1


def test_a_model_folder_needs_no_mlflow(gray: GrayWorld, photos: Path, tmp_path: Path) -> None:
    shutil.copy(gray.params, tmp_path / "params.yaml")
    code = (
        "import sys; from components.__main__ import main; "
        f"code = main(['predict', 'photos/0000.png', '--model', {str(gray.grpo)!r}]); "
        "print(code, [name for name in ('mlflow', 'dvc', 'trl', 'great_expectations') if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.splitlines()[-1] == "0 []"


def test_help_imports_no_library_of_a_model() -> None:
    code = (
        "import sys; from components.commands.predict.command import parser; parser().format_help(); "
        "print([name for name in ('torch', 'transformers', 'mlflow', 'pyarrow', 'numpy') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
