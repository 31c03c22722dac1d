"""Training curves: sent to the tracker during training, written to curve.csv and metrics.json at its end."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from components.console import console
from components.shared.io.atomic import write_json, write_text
from components.shared.io.progress import Work, training_progress
from components.shared.tracking.step_run import StepRun
from components.shared.training.data_wait import DataWait

DATA_WAIT = "data_wait_share"
# These go to the tracker but not into outputs, which must be the same bytes for the same inputs: figures that depend on
# the clock, and sums that transformers and TRL restart when a run is resumed.
_CLOCK = ("step_time", "runtime", "per_second", "flos", "seconds", "memory", DATA_WAIT)
_RESTARTED = ("train_loss", "num_tokens")


class CurveCallback(TrainerCallback):
    """Sends each log entry to the tracker and shows the training's progress."""

    def __init__(self, track: StepRun | None, show: Sequence[str], data_wait: DataWait | None = None) -> None:
        """Only rank 0 has a tracker and shows progress.

        Args:
            track: rank 0's; None on the others.
            show: the metrics beside the steps, in their order.
            data_wait: the trainer's clock; logged with each entry, and summarised at the end.
        """
        self._track, self._show, self._data_wait = track, show, data_wait
        self._work: Work | None = None
        self._seen: dict[str, float] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begins to show progress."""
        if self._track is not None:
            self._work = training_progress(state.max_steps, state.global_step).start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Shows the new number of steps."""
        if self._data_wait:
            self._data_wait.step_ended()
        if self._work:
            self._work.show(state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Sends the finite figures to the tracker, with the share of time spent waiting for data."""
        if self._track is None:
            return
        numbers = {k: float(v) for k, v in (logs or {}).items() if isinstance(v, int | float) and math.isfinite(v)}
        share = self._data_wait.share() if self._data_wait and "loss" in numbers else None
        if share is not None:
            numbers[DATA_WAIT] = share
        self._track.log(numbers, state.global_step)
        self._seen |= numbers
        if self._work:
            figures = ", ".join(f"{name} {self._seen[name]:.3g}" for name in self._show if name in self._seen)
            self._work.show(state.global_step, figures)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Prints the last figures, and how long training waited for data."""
        if self._work:
            self._work.stop()
            console.print(self._work.line(), markup=False, soft_wrap=True)
            if self._data_wait and (summary := self._data_wait.summary()):
                console.print(summary)


def write_results(
    folder: Path, history: Sequence[Mapping[str, Any]], metrics: Mapping[str, float | str | None]
) -> None:
    """Writes curve.csv (one row per step, one column per metric) and metrics.json (the last figures and `metrics`).

    Args:
        folder: for both files.
        history: the trainer's log entries.
        metrics: figures of the whole training, and its name.
    """
    lines: dict[int, dict[str, float]] = {}
    for entry in history:
        figures = {
            k: v
            for k, v in entry.items()
            if k not in ("step", "epoch", *_RESTARTED) and not any(c in k for c in _CLOCK)
        }
        if figures:
            lines.setdefault(int(entry["step"]), {}).update(figures)
    names = sorted({name for line in lines.values() for name in line})
    out = io.StringIO()
    writer = csv.DictWriter(out, ["step", *names], lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows({"step": step, **line} for step, line in sorted(lines.items()))
    write_text(folder / "curve.csv", out.getvalue())
    last = {name: next(line[name] for _, line in sorted(lines.items(), reverse=True) if name in line) for name in names}
    finite = {k: v for k, v in last.items() if isinstance(v, int | float) and math.isfinite(v)}
    write_json(folder / "metrics.json", {**finite, **metrics})
