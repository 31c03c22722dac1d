"""An arm of a study, run: from the warm start to a model, and the time that it took."""

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.commands.ablation.studies import Arm
from components.settings import Grpo, Settings
from components.shared.io.atomic import write_json


@dataclass(frozen=True)
class Job:
    """One arm with one seed.

    Attributes:
        folder: where the model goes; an arm that stands there already is not run again.
        seconds: SFT continued stops at this time (see `effort`); None for GRPO, which runs its steps.
    """

    arm: Arm
    seed: int
    settings: Settings
    ingest: Path
    warm: Path
    folder: Path
    threads: int
    seconds: float | None = None


class Silent:
    """A tracker for runs that nobody follows."""

    def log(self, metrics: Any, step: int) -> None:
        """Drops the figures; the curve file has them."""


def run(job: Job) -> float:
    """Trains the arm and returns the seconds of `effort` that it took, imports left out."""
    stamp = job.folder / "seconds.json"
    if stamp.exists():
        return float(json.loads(stamp.read_text())["seconds"])
    os.environ["OMP_NUM_THREADS"] = str(job.threads)
    import torch

    torch.set_num_threads(job.threads)
    seconds = _continue_sft(job) if job.arm.grpo is None else _reinforce(job, job.arm.grpo)
    write_json(stamp, {"seconds": seconds})
    return seconds


def _reinforce(job: Job, changes: Mapping[str, Any]) -> float:
    from components.commands.ablation.continued_sft import effort
    from components.grpo import step

    grpo = Grpo.model_validate({**job.settings.grpo.model_dump(), **changes, "seed": job.seed})
    # Without loaders beside it, whose work would not be counted.
    launcher = job.settings.launcher.model_copy(update={"loader_workers": 0})
    settings = job.settings.model_copy(update={"grpo": grpo, "launcher": launcher})
    track: Any = Silent()
    # From the first step or not at all: of an arm that went on from a checkpoint, only the rest would be timed.
    with tempfile.TemporaryDirectory(dir=job.folder.parent, prefix="state-") as state:
        start = effort()
        step.run(settings, track, ingest=job.ingest, sft=job.warm, out=job.folder, state=Path(state))
        return effort() - start


def _continue_sft(job: Job) -> float:
    from components.commands.ablation.continued_sft import effort
    from components.commands.ablation.continued_sft import run as continued

    assert job.seconds is not None
    start = effort()
    sft = job.settings.sft.model_copy(update={"seed": 1000 + job.seed})
    settings = job.settings.model_copy(update={"sft": sft})
    continued(settings, job.seconds, ingest=job.ingest, warm=job.warm, out=job.folder)
    return effort() - start
