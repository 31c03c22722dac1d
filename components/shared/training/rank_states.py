"""What each rank has of its own in a checkpoint, random states and running sums, and how other ranks resume from it."""

import json
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import gather
from transformers import set_seed

from components.console import console
from components.shared.io.atomic import write_json
from components.shared.training.ranks import ranks
from components.shared.training.trainer_hooks import TrainerHooks

WINDOW = "window.json"  # what was averaged since the last log entry


def saved_ranks(checkpoint: Path) -> int:
    """The number of ranks that wrote a checkpoint: each of them saved its random states."""
    return len(list(checkpoint.glob("rng_state*.pth")))


def resumed_seed(seed: int, step: int, world_size: int, rank: int) -> int:
    """Seed of a rank that resumes at `step` from a checkpoint of another number of ranks: 32 bits of all four."""
    return int(np.random.SeedSequence([seed, step, world_size, rank]).generate_state(1)[0])


class RankStates(TrainerHooks):
    """Mixin for a Trainer: any number of ranks resumes from a checkpoint.

    As many ranks as wrote it take their own random states and sums, and go on as if nothing had happened. Otherwise
    each rank begins with `resumed_seed`, and with the mean of the losses that the others had summed up. Nothing else
    depends on the number of ranks: weights, optimizer and schedule are the same on all of them, and the position in the
    presentations follows from the step.
    """

    def _load_rng_state(self, checkpoint: str | None) -> None:
        state = ranks()
        if checkpoint is None or (saved := saved_ranks(Path(checkpoint))) == state.num_processes:
            super()._load_rng_state(checkpoint)
            return
        if state.is_main_process:
            console.print(
                f"resuming from step {self.state.global_step} on another number of ranks: {state.num_processes} "
                f"instead of {saved}"
            )
        seed = self.args.seed % 2**32  # SeedSequence takes no negative number
        set_seed(resumed_seed(seed, self.state.global_step, state.num_processes, state.process_index))

    def _save_window(self, checkpoint: Path) -> None:
        """Saves what was averaged since the last log entry, if there is anything.

        The loss is each rank's own sum. Other figures are those of rank 0, which logs.
        """
        if self.state.global_step > self._globalstep_last_logged:
            losses = gather(self._tr_loss.reshape(1)).tolist()
            metrics = getattr(self, "_metrics", {})
            window = {"since": self._globalstep_last_logged, "losses": losses, "metrics": metrics}
            if self.args.should_save:
                write_json(checkpoint / WINDOW, window)

    def _load_window(self, checkpoint: Path) -> None:
        file = checkpoint / WINDOW
        if file.exists():
            window, state = json.loads(file.read_text(encoding="utf-8")), ranks()
            losses = window["losses"]
            own = losses[state.process_index] if len(losses) == state.num_processes else sum(losses) / len(losses)
            self._globalstep_last_logged = window["since"]
            self._tr_loss = torch.tensor(own, device=self.args.device)
            for mode, figures in window["metrics"].items():
                getattr(self, "_metrics")[mode].update(figures)  # noqa: B009 (not every trainer has them)
