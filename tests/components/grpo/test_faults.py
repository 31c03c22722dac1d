"""What goes wrong in a training: ten kills, a gradient that is no number, a full disk, a group without answers."""

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
from components.shared.model.loading import save
from components.shared.model.tiny import build_model, build_processor
from components.shared.training.checkpoints import last_whole
from tests.components.grpo.test_trainer import QUESTIONS, make_trainer, small_settings
from tests.support.gauge_world import Curves, ingested, write_params
from tests.support.raw_folder import content

STEPS, EVERY = 36, 3


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`ingest` and `sft`, a model that has learned the format."""
    place = tmp_path_factory.mktemp("world")
    ingested(place)
    settings = write_params(place / "warm.yaml", sft={"max_steps": 80, "eval_every": 80, "lr": 0.004})
    sft_run(settings, Curves(), ingest=place / "ingest", validate=place, out=place / "sft", state=place / "state")  # type: ignore[arg-type]
    return place


class Told:
    """Sends the steps that are logged to whoever holds the other end."""

    def __init__(self, end: Connection) -> None:
        """The end to write to."""
        self._end = end

    def log(self, metrics: Any, step: int) -> None:
        """The step alone."""
        self._end.send(step)


def training(place: Path, params: Path, out: Path, end: Connection) -> None:
    """One life of the training, in a process of its own."""
    torch.set_num_threads(1)
    settings, track = load_settings(params), Told(end)
    run(settings, track, ingest=place / "ingest", sft=place / "sft", out=out, state=out.parent / "state")  # type: ignore[arg-type]


@pytest.fixture
def processes() -> Iterator[Any]:
    """Starts trainings; the imports are done once for all of them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.components.grpo.test_faults"])
    started = []

    def start(*words: Any) -> tuple[Any, Connection]:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=training, args=(*words, theirs))
        process.start()
        theirs.close()
        started.append(process)
        return process, ours

    yield start
    for process in started:
        process.kill()
        process.join()


def steps_seen(end: Connection) -> list[int]:
    """All that is told until the process ends."""
    seen = []
    try:
        while True:
            seen.append(end.recv())
    except EOFError:
        return sorted(set(seen))


@pytest.mark.timeout(300)
def test_ten_kills_at_random_moments_change_nothing(world: Path, processes: Any, tmp_path: Path) -> None:
    """kill -9: weights, curve and figures are those of an undisturbed run, bit for bit, with anchors remembered."""
    params = tmp_path / "params.yaml"
    recent = {"inputs": 16, "steps": 6}
    write_params(params, grpo={"steps": STEPS, "checkpoint_every": EVERY, "recent": recent, "lr": 0.001})
    whole, killed = tmp_path / "whole" / "grpo", tmp_path / "killed" / "grpo"
    process, end = processes(world, params, whole)
    assert steps_seen(end) == list(range(1, STEPS + 1))
    rng = np.random.default_rng(0)
    first_steps = []
    for life in range(10):
        process, end = processes(world, params, killed)
        # From before the first step of a life to a few after it, in the middle of a checkpoint as well.
        for turn in range(int(rng.integers(0, 6))):
            step = end.recv()
            if turn == 0:
                first_steps.append(step)
        time.sleep(rng.uniform(0, 0.1))
        assert process.is_alive(), f"life {life} had ended before it could be killed"
        process.kill()
        process.join()
        assert not killed.exists()
    process, end = processes(world, params, killed)
    last_life = steps_seen(end)
    process.join()
    assert process.exitcode == 0
    assert last_life[-1] == STEPS
    assert last_life[0] > EVERY, "it should have gone on, not begun anew"
    assert first_steps == sorted(first_steps), "no life begins before the one that was killed"
    assert content(killed) == content(whole)


def test_weights_that_run_away_end_it_in_words(world: Path, tmp_path: Path) -> None:
    settings = write_params(tmp_path / "params.yaml", grpo={"steps": 6, "checkpoint_every": 1, "lr": 1e38})
    with pytest.raises(ConcordError, match=r"the model's logits are not numbers.*Lower lr"):
        run(settings, Curves(), ingest=world / "ingest", sft=world / "sft", out=tmp_path / "grpo", state=tmp_path / "s")  # type: ignore[arg-type]
    assert not (tmp_path / "grpo").exists()


def test_a_gradient_that_is_no_number_ends_it_before_the_weights(world: Path, tmp_path: Path) -> None:
    settings = write_params(tmp_path / "params.yaml", sft={"lr": 1e38, "warmup_steps": 0, "eval_every": 6})
    with pytest.raises(ConcordError, match=r"training step \d: the norm of the gradient is (nan|inf).*Lower lr"):
        sft_run(settings, Curves(), ingest=world / "ingest", validate=world, out=tmp_path / "sft", state=tmp_path / "s")  # type: ignore[arg-type]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of four MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_told_and_nothing_is_lost(world: Path, small_disk: Path, tmp_path: Path) -> None:
    """The third checkpoint finds no room; with room again, the run goes on from the second to the same bytes."""
    settings = write_params(tmp_path / "params.yaml", grpo={"steps": 4, "checkpoint_every": 1})
    ports = {"ingest": world / "ingest", "sft": world / "sft"}
    run(settings, Curves(), **ports, out=tmp_path / "whole", state=tmp_path / "elsewhere")  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        run(settings, Curves(stop_after=2), **ports, out=tmp_path / "grpo", state=small_disk)  # type: ignore[arg-type]
    (folder,) = small_disk.iterdir()
    kept = last_whole(folder)
    assert kept is not None
    filler = small_disk / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(small_disk).free))
    with pytest.raises(ConcordError, match=r"no space left on its disk \(0 of 4 MiB free\).*last checkpoint"):
        run(settings, Curves(), **ports, out=tmp_path / "grpo", state=small_disk)  # type: ignore[arg-type]
    assert last_whole(folder) == kept
    filler.unlink()
    track = Curves()
    run(settings, track, **ports, out=tmp_path / "grpo", state=small_disk)  # type: ignore[arg-type]
    assert track.steps("loss")[0] > 1
    assert content(tmp_path / "grpo") == content(tmp_path / "whole")


def test_an_output_that_finds_no_room(world: Path, small_disk: Path, tmp_path: Path) -> None:
    settings = write_params(tmp_path / "params.yaml", grpo={"steps": 1})
    (small_disk / "filler").write_bytes(bytes(4_000_000))
    with pytest.raises(ConcordError, match=r"disk/grpo: no space left"):
        run(
            settings, Curves(), ingest=world / "ingest", sft=world / "sft", out=small_disk / "grpo",  # type: ignore[arg-type]
            state=tmp_path / "state",
        )  # fmt: skip
    assert [path.name for path in small_disk.iterdir()] == ["filler"], "nothing half-written is left"


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_a_group_without_an_answer_learns_nothing_and_spoils_nothing(scale: str, tmp_path: Path) -> None:
    settings = small_settings(advantage=scale)
    processor = build_processor(settings.model.tiny, QUESTIONS)
    save(build_model(settings.model.tiny, processor, seed=3), processor, tmp_path / "warm")
    trainer = make_trainer(tmp_path / "warm", settings, tmp_path / "out")
    texts = [f"<answer> {10 * i + g} </answer>" if i != 2 else "?" for i in range(6) for g in range(4)]
    inputs = [{"target": 9.0 * i, "shot": "few"} for i in range(6) for _ in range(4)]
    rewards = trainer._calculate_rewards(inputs, None, [[{"content": text}] for text in texts], None)
    advantages = trainer._advantages
    assert advantages is not None
    assert rewards.isfinite().all()
    assert rewards[8:12, 0].tolist() == [-1.0] * 4
    assert advantages[8:12].tolist() == [0.0] * 4
    assert advantages.isfinite().all()
    assert advantages[:4].abs().sum() > 0
