"""Errors during training: kills, a gradient that is not finite, a full disk, a group without valid answers."""

import multiprocessing
import shutil
import subprocess
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from components.errors import ConcordError
from components.grpo.step import run
from components.settings import load_settings
from components.sft.step import run as sft_run
from components.shared.training.checkpoints import last_complete
from tests.support.gauge_world import Curves, ingested, write_params
from tests.support.grpo_training import ScriptedAnswers, make_trainer, rollout_rows, save_tiny, small_settings
from tests.support.raw_folder import content

STEPS, EVERY = 36, 3


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `ingest` and `sft`, a model that has learned the format."""
    folder = tmp_path_factory.mktemp("world")
    ingested(folder)
    settings = write_params(folder / "warm.yaml", sft={"max_steps": 80, "eval_every": 80, "lr": 0.004})
    sft_run(settings, Curves(), ingest=folder / "ingest", validate=folder, out=folder / "sft", state=folder / "state")  # type: ignore[arg-type]
    return folder


class StepSender:
    """A tracker that sends the logged steps over a pipe."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def log(self, metrics: Any, step: int) -> None:
        """Sends the step."""
        self._connection.send(step)


def training(world: Path, params: Path, out: Path, connection: Connection) -> None:
    """Runs the step in a process of its own, until it ends or is killed."""
    torch.set_num_threads(1)
    settings, track = load_settings(params), StepSender(connection)
    run(settings, track, ingest=world / "ingest", sft=world / "sft", out=out, state=out.parent / "state")  # type: ignore[arg-type]


@pytest.fixture
def processes() -> Iterator[Any]:
    """Starts trainings in processes that import the code only once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.components.grpo.test_faults"])
    started = []

    def start(*arguments: Any) -> tuple[Any, Connection]:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=training, args=(*arguments, theirs))
        process.start()
        theirs.close()
        started.append(process)
        return process, ours

    yield start
    for process in started:
        process.kill()
        process.join()


def received_steps(connection: Connection) -> list[int]:
    """The steps that a process logs until it ends."""
    steps = []
    try:
        while True:
            steps.append(connection.recv())
    except EOFError:
        return sorted(set(steps))


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("estimator", "kills"), [("sampled", 10), ("means", 5)])
def test_kills_at_random_moments_change_nothing(
    estimator: str, kills: int, world: Path, processes: Any, tmp_path: Path
) -> None:
    """After kill -9: weights, curve and metrics equal those of a run without kills bit for bit, with recent anchors."""
    params = tmp_path / "params.yaml"
    recent = {"inputs": 16, "steps": 6}
    grpo = {"steps": STEPS, "checkpoint_every": EVERY, "recent": recent, "lr": 0.001, "eval_rows": 10}
    write_params(params, grpo={**grpo, "estimator": estimator})
    whole, killed = tmp_path / "whole" / "grpo", tmp_path / "killed" / "grpo"
    process, connection = processes(world, params, whole)
    assert received_steps(connection) == list(range(1, STEPS + 1))
    rng = np.random.default_rng(0)
    first_steps = []
    for attempt in range(kills):
        process, connection = processes(world, params, killed)
        # Killed before the first step or up to a few steps later, also while a checkpoint is written.
        for received in range(int(rng.integers(0, 6))):
            step = connection.recv()
            if received == 0:
                first_steps.append(step)
        time.sleep(rng.uniform(0, 0.1))
        assert process.is_alive(), f"attempt {attempt} ended before it could be killed"
        process.kill()
        process.join()
        assert not killed.exists()
    process, connection = processes(world, params, killed)
    last_steps = received_steps(connection)
    process.join()
    assert process.exitcode == 0
    assert last_steps[-1] == STEPS
    assert last_steps[0] > EVERY, "it should have resumed from a checkpoint"
    assert first_steps == sorted(first_steps), "no attempt starts before the previous one"
    assert content(killed) == content(whole)


def test_nan_logits_are_reported(world: Path, tmp_path: Path) -> None:
    settings = write_params(tmp_path / "params.yaml", grpo={"steps": 6, "checkpoint_every": 1, "lr": 1e38})
    with pytest.raises(ConcordError, match=r"the model's logits are NaN.*Lower lr"):
        run(settings, Curves(), ingest=world / "ingest", sft=world / "sft", out=tmp_path / "grpo", state=tmp_path / "s")  # type: ignore[arg-type]
    assert not (tmp_path / "grpo").exists()


@pytest.mark.parametrize("estimator", ["means", "policy"])
def test_a_gradient_of_the_exact_estimators_that_is_not_finite_is_reported(
    estimator: str, world: Path, tmp_path: Path
) -> None:
    grpo = {"estimator": estimator, "steps": 6, "checkpoint_every": 1, "lr": 1e38}
    settings = write_params(tmp_path / "params.yaml", grpo=grpo)
    with pytest.raises(ConcordError, match=r"training step \d: the norm of the gradient is (nan|inf).*Lower lr"):
        run(settings, Curves(), ingest=world / "ingest", sft=world / "sft", out=tmp_path / "grpo", state=tmp_path / "s")  # type: ignore[arg-type]
    assert not (tmp_path / "grpo").exists()


def test_a_gradient_that_is_not_finite_stops_training_before_the_weights_change(world: Path, tmp_path: Path) -> None:
    settings = write_params(tmp_path / "params.yaml", sft={"lr": 1e38, "warmup_steps": 0, "eval_every": 6})
    with pytest.raises(ConcordError, match=r"training step \d: the norm of the gradient is (nan|inf).*Lower lr"):
        sft_run(settings, Curves(), ingest=world / "ingest", validate=world, out=tmp_path / "sft", state=tmp_path / "s")  # type: ignore[arg-type]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("estimator", ["sampled", "means"])
def test_a_full_disk_is_reported_and_training_can_resume(
    estimator: str, world: Path, small_disk: Path, tmp_path: Path
) -> None:
    """The third checkpoint does not fit; after space is freed, the run resumes from the second to the same bytes."""
    settings = write_params(tmp_path / "params.yaml", grpo={"steps": 4, "checkpoint_every": 1, "estimator": estimator})
    ports = {"ingest": world / "ingest", "sft": world / "sft"}
    run(settings, Curves(), **ports, out=tmp_path / "whole", state=tmp_path / "elsewhere")  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        run(settings, Curves(stop_after=2), **ports, out=tmp_path / "grpo", state=small_disk)  # type: ignore[arg-type]
    (folder,) = small_disk.iterdir()
    checkpoint = last_complete(folder)
    assert checkpoint is not None
    filler = small_disk / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(small_disk).free))
    with pytest.raises(ConcordError, match=r"no space left on its disk \(0 of 4 MiB free\).*last checkpoint"):
        run(settings, Curves(), **ports, out=tmp_path / "grpo", state=small_disk)  # type: ignore[arg-type]
    assert last_complete(folder) == checkpoint
    filler.unlink()
    track = Curves()
    run(settings, track, **ports, out=tmp_path / "grpo", state=small_disk)  # type: ignore[arg-type]
    assert track.steps("loss")[0] > 1
    assert content(tmp_path / "grpo") == content(tmp_path / "whole")


def test_a_full_disk_leaves_no_partial_output(world: Path, small_disk: Path, tmp_path: Path) -> None:
    settings = write_params(tmp_path / "params.yaml", grpo={"steps": 1})
    (small_disk / "filler").write_bytes(bytes(4_000_000))
    with pytest.raises(ConcordError, match=r"disk/grpo: no space left"):
        run(
            settings, Curves(), ingest=world / "ingest", sft=world / "sft", out=small_disk / "grpo",  # type: ignore[arg-type]
            state=tmp_path / "state",
        )  # fmt: skip
    assert [path.name for path in small_disk.iterdir()] == ["filler"], "no partial output is left"


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_a_group_without_valid_answers_has_zero_advantages(scale: str, tmp_path: Path) -> None:
    settings = small_settings(advantage=scale)
    trainer = make_trainer(save_tiny(settings, tmp_path / "warm"), settings, tmp_path / "out", ScriptedAnswers)
    assert isinstance(trainer, ScriptedAnswers)
    trainer.max_completion_length = 12
    trainer.answers = [f"<answer> {10 * i + g} </answer>" if i != 2 else "?" for i in range(6) for g in range(4)]
    advantages = trainer._generate_and_score_completions(rollout_rows([9.0 * i for i in range(6)], 4))["advantages"]
    scores = trainer._rewards.scores
    assert scores is not None
    assert np.isfinite(scores.predictions).sum() == 20
    assert np.isfinite(scores.rewards).all()
    assert scores.rewards[0, 2].tolist() == [-1.0] * 4
    assert advantages[8:12].tolist() == [0.0] * 4
    assert advantages.isfinite().all()
    assert advantages[:4].abs().sum() > 0
