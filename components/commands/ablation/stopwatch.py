"""Measures the time of training steps, without model loading and without the validation passes between them."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from components.shared.io.atomic import write_json
from components.shared.model.device import on_accelerator


def training_clock() -> float:
    """Seconds from an arbitrary start: processor time of this process on a CPU, wall time on an accelerator.

    Processor time does not depend on what else the machine is doing.
    """
    return time.monotonic() if on_accelerator() else time.process_time()


@dataclass(frozen=True)
class Tally:
    """Steps that were measured, and the seconds that they took by `training_clock`."""

    steps: int = 0
    seconds: float = 0.0

    @property
    def per_step(self) -> float:
        """Seconds of one step; 0 if none was measured."""
        return self.seconds / self.steps if self.steps else 0.0

    @classmethod
    def read(cls, path: Path) -> "Tally":
        """The tally of a file; an empty one if there is no file."""
        return cls(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else cls()


class TrialOverError(Exception):
    """Enough steps were measured."""


class Stopwatch:
    """A tracker for a training step that logs nothing to MLflow and measures the steps' time instead.

    The first step after each start is not measured, since loading comes before it. The tally is written to a file at
    each validation pass, and so at each checkpoint: a resumed training adds to it.
    """

    def __init__(self, path: Path, trial_steps: int | None = None) -> None:
        """Goes on from the tally in the file.

        Args:
            path: the file.
            trial_steps: raise TrialOverError once so many steps were measured; None: never.
        """
        self._path, self._trial_steps = path, trial_steps
        self._tally = Tally.read(path)
        self._last: tuple[int, float] | None = None  # step and time of the last log entry

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Adds the time since the last entry if this one reports a step, and not a validation pass."""
        now = training_clock()
        if "loss" in metrics and self._last:
            steps, seconds = step - self._last[0], now - self._last[1]
            self._tally = Tally(self._tally.steps + steps, self._tally.seconds + seconds)
        over = self._trial_steps is not None and self._tally.steps >= self._trial_steps
        if "loss" not in metrics or over:
            write_json(self._path, asdict(self._tally))
        if over:
            raise TrialOverError
        self._last = step, now
