"""Training state that survives a kill: only whole checkpoints count, and a run that goes on from one ends in the same
bytes as a run that nothing disturbed."""

import hashlib
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from components.console import console
from components.errors import ConcordError
from components.settings import Settings
from components.shared.io.atomic import write_json
from components.shared.io.disk_full import disk_full_errors
from components.shared.tracking.hashes import dvc_hash
from components.shared.tracking.lineage import UNKNOWN
from components.shared.training.ranks import ranks

WHOLE = "whole"
KEPT = 2


def state_folder(
    state: Path,
    settings: Settings,
    sections: tuple[str, ...],
    inputs: dict[str, Path],
    code: str = UNKNOWN,
    world_size: int = 1,
) -> Path:
    """The folder for the training state of exactly these settings and inputs, and of this code: `state`/FINGERPRINT.

    What so many ranks have left (`FINGERPRINT-2-ranks`) only as many go on from: each has random states of its own.

    Args:
        sections: of the settings, those that decide the result.
        inputs: port name -> path.
        code: mark of the code (`code_mark`). A training whose code was corrected must not resume from what the old
            code left.
    """
    wanted = settings.tree()
    parts = {name: wanted[name] for name in sections} | {f"in.{port}": dvc_hash(path) for port, path in inputs.items()}
    parts["code"] = code
    fingerprint = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
    folder = state / (fingerprint if world_size == 1 else f"{fingerprint}-{world_size}-ranks")
    others = [place for place in state.glob(f"{fingerprint}*") if place != folder and _checkpoints(place)]
    if others and not _checkpoints(folder) and ranks().is_main_process:
        console.print(
            f"{others[0]} holds training state of another number of ranks; with {world_size} this run begins anew. "
            "Set launcher.num_processes back to go on from there."
        )
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def seal(folder: Path, step: int) -> None:
    """Marks the checkpoint of `step` as whole, once its files are on the disk; the mark holds their sizes."""
    place = folder / f"{PREFIX_CHECKPOINT_DIR}-{step}"
    for file in _files(place):
        with open(file, "rb") as opened:
            os.fsync(opened.fileno())
    write_json(place / WHOLE, _sizes(place))


def resume_point(folder: Path) -> str | None:
    """`last_whole`, for every rank the same."""
    with ranks().main_process_first():
        return last_whole(folder)


def last_whole(folder: Path) -> str | None:
    """The newest whole checkpoint, or None. What a kill left half-written, or a crash of the machine cut short after it
    was sealed, is removed."""
    for place in _checkpoints(folder):
        if not _is_whole(place):
            shutil.rmtree(place)
    whole = _checkpoints(folder)
    return str(whole[-1]) if whole else None


def _is_whole(place: Path) -> bool:
    try:
        return json.loads((place / WHOLE).read_text(encoding="utf-8")) == _sizes(place)
    except (OSError, ValueError):
        return False


def _files(place: Path) -> list[Path]:
    return [file for file in place.rglob("*") if file.is_file() and file != place / WHOLE]


def _sizes(place: Path) -> dict[str, int]:
    """Bytes of each file, by its path in the checkpoint."""
    return {file.relative_to(place).as_posix(): file.stat().st_size for file in _files(place)}


def drop_old(folder: Path, best: str | None) -> None:
    """Keeps the newest KEPT checkpoints, the newest and `best` always among them."""
    places = _checkpoints(folder)
    removable = [place for place in places[:-1] if best is None or place.name != Path(best).name]
    for place in removable[: max(len(places) - KEPT, 0)]:
        (place / WHOLE).unlink(missing_ok=True)  # first: a kill from here on leaves nothing that looks whole
        shutil.rmtree(place)


def _checkpoints(folder: Path) -> list[Path]:
    """In the order of their steps."""
    return sorted(folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"), key=lambda place: int(place.name.rpartition("-")[2]))


class SealedCheckpoints:
    """Mixin for a Trainer (transformers 5.23; the hooks are private) that is to survive a kill.

    - Each checkpoint is sealed when it is written, and only then is an older one dropped; transformers drops first.
    - A checkpoint closes the window over which logged figures are averaged, since a run that goes on opens a new one.
    - A gradient that is not a number ends the training before it reaches the weights, and a full disk ends it in words.
    - A run that goes on from where training had come to its end, by patience too, trains no further.
    """

    _ended = False

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self.args.output_dir)  # type: ignore[attr-defined]
        with disk_full_errors(folder):
            super()._save_checkpoint(model, trial)  # type: ignore[misc]
            ranks().wait_for_everyone()  # each writes its random states into it
            if self.args.should_save:  # type: ignore[attr-defined]
                seal(folder, self.state.global_step)  # type: ignore[attr-defined]
        if self.args.should_save:  # type: ignore[attr-defined]
            drop_old(folder, self.state.best_model_checkpoint)  # type: ignore[attr-defined]

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        """Over all ranks, so that they end together."""
        norm = super()._get_grad_norm(*args, **kwargs)  # type: ignore[misc]
        if not math.isfinite(norm):
            step = self.state.global_step + 1  # type: ignore[attr-defined]
            raise ConcordError(
                f"training step {step}: the norm of the gradient is {norm}. The weights were not touched. Lower lr, "
                "give it more warmup_steps, or train in float32; with the same settings it would go on from the last "
                "checkpoint to the same place."
            )
        return norm

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        self.control.should_log |= self.control.should_save  # type: ignore[attr-defined]
        super()._maybe_log_save_evaluate(*args, **kwargs)  # type: ignore[misc]

    def _load_callback_state(self) -> None:
        super()._load_callback_state()  # type: ignore[misc]
        self._ended = self.control.should_training_stop  # type: ignore[attr-defined]

    def _run_epoch(self, **kwargs: Any) -> None:
        if self._ended:
            self.control.should_training_stop = True  # type: ignore[attr-defined]
        else:
            super()._run_epoch(**kwargs)  # type: ignore[misc]

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """No model card: its text names the machine's paths and the day."""
