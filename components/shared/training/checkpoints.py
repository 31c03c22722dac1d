"""Checkpoints that survive a kill: only complete ones count, and on the same number of ranks a resumed run ends in the
same bytes as an uninterrupted one."""

import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from components.errors import ConcordError
from components.shared.io.atomic import flush_tree, write_json
from components.shared.io.disk_full import disk_full_errors
from components.shared.io.stop import Stopped, finishing
from components.shared.tracking.lineage import Lineage
from components.shared.training.rank_states import RankStates
from components.shared.training.ranks import agreed, ranks

SEAL = "whole"  # the file that marks a checkpoint as complete
KEPT = 2  # checkpoints


def state_folder(state: Path, lineage: Lineage) -> Path:
    """Creates the folder for the training state of these settings, inputs, code and libraries.

    It is `state`/`Lineage.state_name`, so that a training does not resume from what another one left. It is the same
    for any number of ranks, see `RankStates`.

    Args:
        state: holds the folders of all runs.
        lineage: what decides the training.
    """
    folder = state / lineage.state_name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def seal(folder: Path, step: int) -> None:
    """Flushes the files of the checkpoint of `step` to disk, then marks it as complete with their sizes."""
    checkpoint = folder / f"{PREFIX_CHECKPOINT_DIR}-{step}"
    flush_tree(checkpoint)
    write_json(checkpoint / SEAL, _sizes(checkpoint))


def resume_point(folder: Path) -> str | None:
    """Returns `last_complete`, the same on every rank."""
    with ranks().main_process_first():
        return last_complete(folder)


def last_complete(folder: Path) -> str | None:
    """Returns the newest complete checkpoint, or None.

    Removes incomplete ones: a kill interrupted their writing, or a machine crash truncated them after they were sealed.
    """
    for checkpoint in _checkpoints(folder):
        if not _is_complete(checkpoint):
            shutil.rmtree(checkpoint)
    complete = _checkpoints(folder)
    return str(complete[-1]) if complete else None


def _is_complete(checkpoint: Path) -> bool:
    try:
        return json.loads((checkpoint / SEAL).read_text(encoding="utf-8")) == _sizes(checkpoint)
    except (OSError, ValueError):
        return False


def _files(checkpoint: Path) -> list[Path]:
    return [path for path in checkpoint.rglob("*") if path.is_file() and path != checkpoint / SEAL]


def _sizes(checkpoint: Path) -> dict[str, int]:
    """Bytes of each file, by its path in the checkpoint."""
    return {path.relative_to(checkpoint).as_posix(): path.stat().st_size for path in _files(checkpoint)}


def drop_old(folder: Path, best: str | None) -> None:
    """Keeps the newest KEPT checkpoints; the newest one and `best` are never removed."""
    checkpoints = _checkpoints(folder)
    removable = [path for path in checkpoints[:-1] if best is None or path.name != Path(best).name]
    for path in removable[: max(len(checkpoints) - KEPT, 0)]:
        (path / SEAL).unlink(missing_ok=True)  # first, so that a kill during rmtree leaves an incomplete checkpoint
        shutil.rmtree(path)


def _checkpoints(folder: Path) -> list[Path]:
    """In the order of their steps."""
    return sorted(folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"), key=lambda path: int(path.name.rpartition("-")[2]))


class SealedCheckpoints(RankStates):
    """Mixin for a Trainer whose training can be killed and resumed.

    - It seals each checkpoint once it is written, and only then drops an older one; transformers drops first.
    - It logs at each evaluation.
    - It writes a checkpoint at the end of the optimizer step where the last one is older than `checkpoint_seconds` by
      the clock of rank 0, and after a signal, where it also stops. Nothing is logged there: the window over which
      logged figures are averaged is part of the checkpoint, so its time shows in no output.
    - It stops before a gradient that is not finite changes the weights, and reports a full disk as a ConcordError.
    - A run resumed after training had ended, also by early stopping, does not train further.
    """

    checkpoint_seconds = math.inf
    _ended = False
    _saved = 0.0  # when the last checkpoint was written, or training began, in seconds of the monotonic clock

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self.args.output_dir)
        with disk_full_errors(folder):
            super()._save_checkpoint(model, trial)
            self._save_window(folder / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
            ranks().wait_for_everyone()  # every rank writes its random states into the checkpoint
            if self.args.should_save:
                seal(folder, self.state.global_step)
        if self.args.should_save:
            drop_old(folder, self.state.best_model_checkpoint)
        self._saved = time.monotonic()

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        """The norm over all ranks, so that they stop together."""
        norm = super()._get_grad_norm(*args, **kwargs)
        if not math.isfinite(norm):
            raise ConcordError(
                f"training step {self.state.global_step + 1}: the norm of the gradient is {norm}. The weights were not "
                "changed. Lower lr, raise warmup_steps, or train in float32; with the same settings, a resumed run "
                "would fail at this step again."
            )
        return norm

    def _maybe_log_save_evaluate(
        self, tr_loss: Any, grad_norm: Any, model: Any, trial: Any, *args: Any, **kwargs: Any
    ) -> None:
        scheduled = self.control.should_save
        self.control.should_log |= self.control.should_evaluate
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, trial, *args, **kwargs)
        number, due = agreed(time.monotonic() - self._saved >= self.checkpoint_seconds)
        if (number or due) and not scheduled:
            self._save_checkpoint(model, trial)
        if number:
            raise Stopped(number)

    def _load_callback_state(self) -> None:
        super()._load_callback_state()
        self._ended = self.control.should_training_stop

    def _run_epoch(self, **kwargs: Any) -> None:
        if self._ended:
            self.control.should_training_stop = True
            return
        if kwargs["resume_from_checkpoint"] and kwargs["epoch"] == kwargs["epochs_trained"]:
            self._load_window(Path(kwargs["resume_from_checkpoint"]))
        self._saved = self._saved or time.monotonic()
        with finishing("this training step"):
            super()._run_epoch(**kwargs)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Writes no model card: its text would contain this machine's paths and the date."""
