"""The share of a training's time that is spent waiting for pictures to be read, decoded and augmented."""

import os
import time
from typing import Any

from components.shared.training.trainer_hooks import TrainerHooks


class DataWait:
    """A clock for training steps, from the request for a step's batches to its end, without evaluation and checkpoints.

    Attributes:
        wait_seconds: spent waiting for batches, over all steps that have ended.
        step_seconds: their whole time.
    """

    def __init__(self) -> None:
        """Starts before the first step."""
        self.wait_seconds = self.step_seconds = 0.0
        self._requested: float | None = None
        self._arrived = 0.0
        self._logged = (0.0, 0.0)

    def batches_requested(self) -> None:
        """Records that a step has begun and requested its batches."""
        self._requested = time.perf_counter()

    def batches_arrived(self) -> None:
        """Records that the step's batches have arrived."""
        self._arrived = time.perf_counter()

    def step_ended(self) -> None:
        """Records that the step has changed the weights."""
        if self._requested is not None:
            self.wait_seconds += self._arrived - self._requested
            self.step_seconds += time.perf_counter() - self._requested
            self._requested = None

    def share(self) -> float | None:
        """Returns the share of waiting in the steps since the last call; None if there were none."""
        waited, total = self.wait_seconds - self._logged[0], self.step_seconds - self._logged[1]
        if not total:
            return None
        self._logged = self.wait_seconds, self.step_seconds
        return waited / total

    def summary(self) -> str:
        """Returns one line for the end of a training; empty if there was no step."""
        if not self.step_seconds:
            return ""
        share = self.wait_seconds / self.step_seconds
        return f"{share:.1%} of the steps' {self.step_seconds:.0f} s went into waiting for pictures"


class TimesDataWait(TrainerHooks):
    """Mixin for a Trainer: times its waits for batches in `data_wait`. A callback must report the end of each step."""

    def __init__(self, **kwargs: Any) -> None:
        """Takes the trainer's arguments."""
        super().__init__(**kwargs)
        self.data_wait = DataWait()
        if self.args.dataloader_num_workers:  # otherwise tokenizers warns about each worker that it is forked
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the batches of one optimizer step."""
        self.data_wait.batches_requested()
        batches = super().get_batch_samples(*args, **kwargs)
        self.data_wait.batches_arrived()
        return batches
