"""`kill` on a step, on `dvc repro` around it, on a launcher of ranks: a checkpoint, a closed run, the same bytes.

Real processes, the real command line. The signal comes some steps after a scheduled checkpoint.
"""

import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.test_kill import Place
from tests.support.gauge_world import ingested, write_params
from tests.support.raw_folder import content

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

# A hundred steps take a second or more: longer than a process needs to notice that its parent is gone.
SFT = {"max_steps": 400, "eval_every": 100, "patience": 99, "lr": 0.004}
Make = Callable[..., Place]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Make]:
    ingest = ingested(tmp_path / "world")
    made: list[Place] = []

    def make(name: str, **launcher: float) -> Place:
        params = tmp_path / f"{name}.yaml"
        write_params(params, sft=SFT, **({"launcher": launcher} if launcher else {}))
        made.append(Place(tmp_path / name, params, ingest, tmp_path / f"{name}.db"))
        made[-1].folder.mkdir()
        return made[-1]

    yield make
    for process in [process for each in made for process in each.started]:
        process.kill()
        process.wait()


def begin(place: Place) -> "subprocess.Popen[bytes]":
    return place.start("-m", "components", *place.words("sft").split())


def stop(place: Place, process: "subprocess.Popen[bytes]", number: signal.Signals) -> int:
    """Sends the signal to `process` shortly after the next scheduled checkpoint; returns its exit code."""
    before = place.sealed("sft")
    until(lambda: process.poll() is not None or place.sealed("sft") != before, place)
    time.sleep(0.2)
    process.send_signal(number)
    return process.wait(timeout=120)


def until(condition: Callable[[], Any], place: Place) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline, place.log()
        time.sleep(0.005)


def statuses(place: Place) -> list[str]:
    """Of the MLflow runs of sft, in order."""
    with sqlite3.connect(f"file:{place.store}?mode=ro", uri=True) as database:
        return [
            status for (status,) in database.execute("select status from runs where name = 'sft' order by start_time")
        ]


def equal(one: Place, other: Place) -> None:
    expected, found = content(one.folder / "sft"), content(other.folder / "sft")
    assert found.keys() == expected.keys()
    for name, data in expected.items():
        assert found[name] == data, name


def test_a_step_and_dvc_around_it_stopped_by_kill_end_in_the_same_bytes(place: Make) -> None:
    undisturbed, stopped = place("undisturbed"), place("stopped")
    undisturbed.finish(begin(undisturbed))

    assert stop(stopped, begin(stopped), signal.SIGTERM) == 143, stopped.log()
    reached = stopped.sealed("sft")[-1]
    assert "stopping after this training step" in stopped.log()
    assert "Traceback" not in stopped.log()
    assert statuses(stopped) == ["KILLED"]

    stage = {
        "cmd": f"exec python -m components {stopped.words('sft')}",
        "outs": [{"sft": {"cache": False, "persist": True}}],
    }
    (stopped.folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"sft": stage}}))
    stopped.finish(stopped.start("-m", "dvc", "init", "-q", "--no-scm"))
    repro = stopped.start("-m", "dvc", "repro", "-q")
    assert stop(stopped, repro, signal.SIGTERM) == -signal.SIGTERM
    until(lambda: statuses(stopped) == ["KILLED", "KILLED"], stopped)
    assert reached < stopped.sealed("sft")[-1] < SFT["max_steps"]

    stopped.finish(stopped.start("-m", "dvc", "repro", "-q"))
    equal(undisturbed, stopped)
    assert statuses(stopped) == ["KILLED", "KILLED", "FINISHED"]
    assert len({place.sealed("sft")[-1] for place in (undisturbed, stopped)}) == 1


def test_ranks_stopped_by_their_launcher_end_in_the_same_bytes(place: Make) -> None:
    """The stopped ones also write checkpoints by the clock of rank 0, one a second."""
    undisturbed = place("undisturbed", num_processes=2)
    stopped = place("stopped", num_processes=2, checkpoint_minutes=0.02)
    undisturbed.finish(begin(undisturbed))
    assert stop(stopped, begin(stopped), signal.SIGTERM) == 143, stopped.log()
    assert 0 < stopped.sealed("sft")[-1] < SFT["max_steps"], stopped.log()
    assert "Traceback" not in stopped.log()
    assert statuses(stopped) == ["KILLED"]
    stopped.finish(begin(stopped))
    equal(undisturbed, stopped)
