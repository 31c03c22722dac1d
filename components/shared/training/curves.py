"""Training curves: to the tracker while training runs, to curve.csv and metrics.json at its end."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from components.console import console
from components.shared.io.atomic import write_json, write_text
from components.shared.tracking.step_run import StepRun
from components.shared.training.data_wait import Waiting

WAIT = "data_wait_share"
# They go to the tracker, but not into outputs, which are the same bytes from the same inputs: wall-clock figures, and
# sums that transformers and TRL begin anew when a killed run goes on.
_CLOCK = ("step_time", "runtime", "per_second", "flos", "seconds", "memory", WAIT)
_BEGUN_ANEW = ("train_loss", "num_tokens")


class Follow(TrainerCallback):
    """Passes each log entry to the tracker and shows progress."""

    def __init__(self, track: StepRun | None, show: Sequence[str], waiting: Waiting | None = None) -> None:
        """Only rank 0 has a tracker and a line.

        Args:
            show: the metrics on the progress line, best known first.
            waiting: the trainer's clock; it is read with each log entry, and told at the end.
        """
        self._track, self._show, self._waiting = track, show, waiting
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[now]}"),
            refresh_per_second=1,
        )
        self._seen: dict[str, float] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Opens the bar."""
        if self._track is not None:
            self._bar.start()
            self._task = self._bar.add_task("training", total=state.max_steps, completed=state.global_step, now="")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Moves it."""
        if self._waiting:
            self._waiting.end()
        if self._track is not None:
            self._bar.update(self._task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Logs."""
        if self._track is None:
            return
        numbers = {k: float(v) for k, v in (logs or {}).items() if isinstance(v, int | float) and math.isfinite(v)}
        share = self._waiting.share() if self._waiting and "loss" in numbers else None
        if share is not None:
            numbers[WAIT] = share
        self._track.log(numbers, state.global_step)
        self._seen |= numbers
        now = "  ".join(f"{name} {self._seen[name]:.3g}" for name in self._show if name in self._seen)
        self._bar.update(self._task, now=now)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Closes it."""
        if self._track is not None:
            self._bar.stop()
            if self._waiting and (words := self._waiting.summary()):
                console.print(words)


def write_results(folder: Path, history: Sequence[Mapping[str, Any]], metrics: Mapping[str, float | None]) -> None:
    """Writes curve.csv (a line a step, a column a metric) and metrics.json (the last figures, and `metrics`)."""
    lines: dict[int, dict[str, float]] = {}
    for entry in history:
        figures = {
            k: v
            for k, v in entry.items()
            if k not in ("step", "epoch", *_BEGUN_ANEW) and not any(c in k for c in _CLOCK)
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
