"""Trains one arm with one seed, measures its time, and reads its answers; every part is kept and not done again."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from components.settings import Grpo, Settings

TRIAL_STEPS = 15
TIME = "time.json"


@dataclass(frozen=True)
class Job:
    """One arm with one seed, or the warm start of a seed.

    Attributes:
        trainer: which training.
        settings: of the experiment, with the arm's changes and the seed.
        ingest: row shards.
        warm: folder of the seed's warm start.
        folder: of the trained model.
        split: whose images are read, `test` or `val`.
        threads: CPU threads of this job.
    """

    trainer: Literal["warm", "sft", "grpo"]
    settings: Settings
    ingest: Path
    warm: Path
    folder: Path
    split: str
    threads: int

    @property
    def answers(self) -> Path:
        """The file of the answers; its presence means that the job is complete."""
        return self.folder / f"answers-{self.split}.npz"

    def with_steps(self, steps: int) -> "Job":
        """The same job with another number of steps."""
        return replace(self, settings=changed(self.settings, {"steps": steps}))


def changed(settings: Settings, grpo: Mapping[str, Any]) -> Settings:
    """The settings with changes to the section grpo, checked."""
    section = Grpo.model_validate({**settings.grpo.model_dump(), **grpo})
    return settings.model_copy(update={"grpo": section})


def train_and_read(job: Job) -> None:
    """Trains the model and reads its answers. A part that is complete is not done again.

    A killed training resumes from its checkpoints; these are removed once it is complete.
    """
    _limit_threads(job.threads)
    from components.commands.ablation.answers import read_answers
    from components.commands.ablation.stopwatch import Stopwatch, Tally
    from components.shared.io.atomic import write_json

    time, state = job.folder / TIME, job.folder.with_name(f"{job.folder.name}-state")
    if not time.exists():
        _train(job, Stopwatch(state / TIME), job.folder, state)
        write_json(time, asdict(Tally.read(state / TIME)))
    shutil.rmtree(state, ignore_errors=True)
    if not job.answers.exists():
        read_answers(job.settings, job.ingest, job.split, job.folder, job.answers)


def measure_step(job: Job) -> float:
    """Seconds of one training step, from a short trial whose model is thrown away; measured once."""
    _limit_threads(job.threads)
    from components.commands.ablation.stopwatch import Stopwatch, Tally, TrialOverError

    path = job.folder.with_name(f"{job.folder.name}-trial.json")
    if Tally.read(path).steps < TRIAL_STEPS:
        path.unlink(missing_ok=True)
        trial = replace(job, settings=changed(job.settings, {"steps": TRIAL_STEPS + 1, "checkpoint_every": 10**6}))
        with tempfile.TemporaryDirectory() as scratch, suppress(TrialOverError):
            _train(trial, Stopwatch(path, TRIAL_STEPS), Path(scratch) / "out", Path(scratch) / "state")
    return Tally.read(path).per_step


def steps_within(seconds: float, per_step: float) -> int:
    """Steps that fit into a time, rounded down to a multiple of 10; at least 10."""
    return max(int(seconds / per_step) // 10 * 10, 10)


def _train(job: Job, track: Any, out: Path, state: Path) -> None:
    paths = {"ingest": job.ingest, "out": out, "state": state}
    state.mkdir(parents=True, exist_ok=True)
    if job.trainer == "warm":
        from components.sft import step as warm_start

        warm_start.run(job.settings, track, validate=job.ingest, **paths)
    elif job.trainer == "sft":
        from components.commands.ablation import continued_sft

        continued_sft.run(job.settings, track, sft=job.warm, **paths)
    else:
        from components.grpo import step as grpo

        grpo.run(job.settings, track, sft=job.warm, **paths)


def _limit_threads(count: int) -> None:
    os.environ["OMP_NUM_THREADS"] = str(count)
    import torch  # after the environment is set

    torch.set_num_threads(count)
