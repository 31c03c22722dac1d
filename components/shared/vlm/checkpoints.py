"""Training state that survives a kill: only whole checkpoints count."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from components.settings import Settings
from components.shared.tracking.hashes import dvc_hash

WHOLE = "whole"


def state_folder(state: Path, settings: Settings, sections: tuple[str, ...], inputs: dict[str, Path]) -> Path:
    """The folder for the training state of exactly these settings and inputs: `state`/FINGERPRINT."""
    wanted = settings.model_dump(mode="json", by_alias=True)
    parts = {name: wanted[name] for name in sections} | {f"in.{port}": dvc_hash(path) for port, path in inputs.items()}
    fingerprint = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
    folder = state / fingerprint
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def seal(folder: Path, step: int) -> None:
    """Marks the checkpoint of `step` as whole, once its files are on the disk."""
    place = folder / f"{PREFIX_CHECKPOINT_DIR}-{step}"
    for file in place.rglob("*"):
        if file.is_file():
            with open(file, "rb") as opened:
                os.fsync(opened.fileno())
    (place / WHOLE).touch()


def last_whole(folder: Path) -> str | None:
    """The newest whole checkpoint, or None. What a kill left half-written is removed."""
    whole: list[tuple[int, Path]] = []
    for place in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        if (place / WHOLE).exists():
            whole.append((int(place.name.rpartition("-")[2]), place))
        else:
            shutil.rmtree(place)
    return str(max(whole)[1]) if whole else None


class SealedCheckpoints:
    """Mixin for a Trainer: each checkpoint is sealed when it is written."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)  # type: ignore[misc]
        if self.args.should_save:  # type: ignore[attr-defined]
            seal(Path(self.args.output_dir), self.state.global_step)  # type: ignore[attr-defined]

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """No model card: its text names the machine's paths and the day."""
