"""Trains one variant of a study from the warm start and measures the training time."""

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.commands.ablation.studies import Variant
from components.settings import Grpo, Settings
from components.shared.io.atomic import write_json


@dataclass(frozen=True)
class TrainingJob:
    """One variant with one seed.

    Attributes:
        folder: output folder of the model; a variant that was trained there before is not trained again.
        threads: CPU threads of this job.
        seconds: training time of continued SFT (see `training_clock`); None for GRPO, which runs its number of steps.
    """

    variant: Variant
    seed: int
    settings: Settings
    ingest: Path
    warm: Path
    folder: Path
    threads: int
    seconds: float | None = None


class NullTracker:
    """A tracker that drops everything: these runs are not logged to MLflow."""

    def log(self, metrics: Any, step: int) -> None:
        """Does nothing; the curve file has the metrics."""


def train_variant(job: TrainingJob) -> float:
    """Trains the variant and returns the seconds that training took by `training_clock`, without imports."""
    finished = job.folder / "seconds.json"
    if finished.exists():
        return float(json.loads(finished.read_text())["seconds"])
    os.environ["OMP_NUM_THREADS"] = str(job.threads)
    import torch

    torch.set_num_threads(job.threads)
    seconds = _continue_sft(job) if job.variant.grpo is None else _train_grpo(job, job.variant.grpo)
    write_json(finished, {"seconds": seconds})
    return seconds


def _train_grpo(job: TrainingJob, changes: Mapping[str, Any]) -> float:
    from components.commands.ablation.continued_sft import training_clock
    from components.grpo import step

    grpo = Grpo.model_validate({**job.settings.grpo.model_dump(), **changes, "seed": job.seed})
    # No loader workers: `training_clock` would not count the time of other processes.
    launcher = job.settings.launcher.model_copy(update={"loader_workers": 0})
    settings = job.settings.model_copy(update={"grpo": grpo, "launcher": launcher})
    tracker: Any = NullTracker()
    # The checkpoints are temporary: a resumed training would report only the time after its checkpoint.
    with tempfile.TemporaryDirectory(dir=job.folder.parent, prefix="state-") as state:
        start = training_clock()
        step.run(settings, tracker, ingest=job.ingest, sft=job.warm, out=job.folder, state=Path(state))
        return training_clock() - start


def _continue_sft(job: TrainingJob) -> float:
    from components.commands.ablation.continued_sft import continue_sft, training_clock

    assert job.seconds is not None
    start = training_clock()
    sft = job.settings.sft.model_copy(update={"seed": 1000 + job.seed})
    settings = job.settings.model_copy(update={"sft": sft})
    continue_sft(settings, job.seconds, ingest=job.ingest, warm=job.warm, out=job.folder)
    return training_clock() - start
