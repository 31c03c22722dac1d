"""How much of a training's time goes into waiting for pictures to be read, decoded and changed."""

import os
import time
from typing import Any


class Waiting:
    """A clock on training steps: a step is from the call for its batches to its end, evaluation and checkpoints aside.

    Attributes:
        waited, taken: seconds so far, of all steps that have ended.
    """

    def __init__(self) -> None:
        """No step yet."""
        self.waited = self.taken = 0.0
        self._called: float | None = None
        self._arrived = 0.0
        self._logged = (0.0, 0.0)

    def call(self) -> None:
        """The step begins: its batches are called for."""
        self._called = time.perf_counter()

    def arrive(self) -> None:
        """They are there."""
        self._arrived = time.perf_counter()

    def end(self) -> None:
        """The weights are changed."""
        if self._called is not None:
            self.waited += self._arrived - self._called
            self.taken += time.perf_counter() - self._called
            self._called = None

    def share(self) -> float | None:
        """Waiting over time of the steps since it was last asked for; None where there was none."""
        waited, taken = self.waited - self._logged[0], self.taken - self._logged[1]
        if not taken:
            return None
        self._logged = self.waited, self.taken
        return waited / taken

    def summary(self) -> str:
        """One line at the end of a training; empty where no step was taken."""
        if not self.taken:
            return ""
        return f"{self.waited / self.taken:.1%} of the steps' {self.taken:.0f} s went into waiting for pictures"


class WaitsForData:
    """Mixin for a Trainer: the clock on its calls for batches. Whoever logs ends its steps."""

    args: Any  # the trainer's

    def __init__(self, **kwargs: Any) -> None:
        """Takes the trainer's arguments."""
        super().__init__(**kwargs)
        self.waiting = Waiting()
        if self.args.dataloader_num_workers:  # else tokenizers warns of each of them that threads are not forked
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The batches of one optimizer step."""
        self.waiting.call()
        batches = super().get_batch_samples(*args, **kwargs)  # type: ignore[misc]
        self.waiting.arrive()
        return batches
