"""kill -9 in the middle of sft and of grpo: the next run resumes from the last complete checkpoint, to the same bytes.

Real processes, the real command line. The files of a run that nothing disturbed are compared with those of one that was
killed twice, once in each step, and found half a checkpoint each time.
"""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from components.shared.training.checkpoints import SEAL
from tests.support.gauge_world import ingested, write_params
from tests.support.raw_folder import content

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

# Between the first checkpoint and the end lie seconds, in which the kill finds its place.
SECTIONS: Mapping[str, Mapping[str, Any]] = {
    "sft": {"max_steps": 48, "eval_every": 4, "patience": 99, "lr": 0.004},
    "grpo": {"steps": 18, "checkpoint_every": 2},
}
# What `dvc repro` does, in one process: the second step reads what the first one made.
CHAIN = "import sys; from components.__main__ import main; sys.exit(max([main(w.split()) for w in sys.argv[1:]]))"


@dataclass
class Place:
    """The folder of one run's outputs and training state."""

    folder: Path
    params: Path
    ingest: Path
    store: Path
    started: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def words(self, step: str) -> str:
        """The command line of a step."""
        ports = {
            "sft": f"--validate {self.ingest} --out {self.folder}/sft",
            "grpo": f"--sft {self.folder}/sft --out {self.folder}/grpo",
        }
        return f"{step} --params {self.params} --ingest {self.ingest} --state {self.folder}/state {ports[step]}"

    def start(self, *words: str) -> "subprocess.Popen[bytes]":
        """Starts Python with these arguments in `folder`."""
        # One thread: how a sum is shared out among threads decides its last bits.
        changes = {
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "MLFLOW_TRACKING_URI": f"sqlite:///{self.store}",
            "HF_HUB_OFFLINE": "1",
            "SHELL": "/bin/sh",  # DVC's stages run in it
        }
        self.folder.mkdir(exist_ok=True)
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")} | changes
        with open(self.folder / "log.txt", "ab") as log:
            process = subprocess.Popen(
                [sys.executable, *words], cwd=self.folder, env=environment, stdout=log, stderr=subprocess.STDOUT
            )
        self.started.append(process)
        return process

    def finish(self, process: "subprocess.Popen[bytes]") -> None:
        """Waits until it exits with 0."""
        assert process.wait(timeout=600) == 0, self.log()

    def log(self) -> str:
        """Output of the processes."""
        return (self.folder / "log.txt").read_text(encoding="utf-8", errors="replace")[-3000:]

    def sealed(self, step: str) -> list[int]:
        """Steps of the whole checkpoints of `step`."""
        seals = (self.folder / "state" / step).glob(f"*/checkpoint-*/{SEAL}")
        return sorted(int(seal.parent.name.rpartition("-")[2]) for seal in seals)

    def kill_in(self, step: str, process: "subprocess.Popen[bytes]") -> int:
        """kill -9 as soon as `step` has a whole checkpoint. Gives the newest one's step."""
        while process.poll() is None and not self.sealed(step):
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, f"it had ended before it could be killed: {self.log()}"
        assert not (self.folder / step).exists()
        return self.sealed(step)[-1]

    def half_a_checkpoint(self, step: str, number: int) -> Path:
        """Leaves a checkpoint as a kill during writing does: files truncated or missing, and no seal."""
        (folder,) = (self.folder / "state" / step).iterdir()
        half = folder / f"checkpoint-{number}"
        shutil.rmtree(half, ignore_errors=True)
        shutil.copytree(folder / f"checkpoint-{self.sealed(step)[-1]}", half)
        (half / SEAL).unlink()
        (half / "optimizer.pt").unlink()
        weights = half / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
        return half

    def first_step_of_last_run(self, step: str) -> int:
        """First training step in the curve of the newest MLflow run of `step`."""
        query = """select min(m.step) from metrics m join runs r on r.run_uuid = m.run_uuid
            where m.key = 'loss' and m.step > 0 and r.run_uuid =
            (select run_uuid from runs where name = ? order by start_time desc limit 1)"""
        with sqlite3.connect(f"file:{self.store}?mode=ro", uri=True) as database:
            return int(database.execute(query, [step]).fetchone()[0])


@pytest.fixture
def places(tmp_path: Path) -> Any:
    params, ingest = tmp_path / "params.yaml", ingested(tmp_path / "world")
    write_params(params, **SECTIONS)
    store = tmp_path / "mlflow.db"
    made = [Place(tmp_path / name, params, ingest, store) for name in ("undisturbed", "killed")]
    yield made
    for process in [process for place in made for process in place.started]:
        process.kill()
        process.wait()


def test_a_training_killed_twice_ends_in_the_same_bytes(places: list[Place]) -> None:
    undisturbed, killed = places
    undisturbed.finish(undisturbed.start("-c", CHAIN, undisturbed.words("sft"), undisturbed.words("grpo")))

    sft = killed.kill_in("sft", killed.start("-m", "components", *killed.words("sft").split()))
    assert 4 <= sft < 48
    killed.half_a_checkpoint("sft", sft + 4)

    grpo = killed.kill_in("grpo", killed.start("-c", CHAIN, killed.words("sft"), killed.words("grpo")))
    assert 2 <= grpo < 18
    killed.half_a_checkpoint("grpo", grpo + 2)

    killed.finish(killed.start("-m", "components", *killed.words("grpo").split()))
    for step in ("sft", "grpo"):
        expected, found = content(undisturbed.folder / step), content(killed.folder / step)
        assert found.keys() == expected.keys()
        assert {"model.safetensors", "curve.csv", "metrics.json"} <= found.keys()
        for name, data in expected.items():
            assert found[name] == data, f"{step}/{name}"
    # The run did not start from the beginning: sft logs at each evaluation, grpo at every step.
    assert killed.first_step_of_last_run("sft") == sft + 4
    assert killed.first_step_of_last_run("grpo") == grpo + 1
