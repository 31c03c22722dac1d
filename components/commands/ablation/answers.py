"""A model's answers to the images of a split: the number in its greedy text, and its distribution over all numbers."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from components.settings import Settings
from components.shared.io.atomic import write_bytes
from components.shared.scoring.errors import Array

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Answers:
    """All arrays are in the order of the split.

    Attributes:
        ids: `(U,)`.
        targets: `(U,)`.
        text: `(U,)` the number in the greedy text, NaN where there is none.
        log_p: `(U, N)` log-probabilities of all numbers.
    """

    ids: np.ndarray
    targets: Array
    text: Array
    log_p: Array

    @classmethod
    def read(cls, path: Path) -> "Answers":
        """Reads what `write` wrote."""
        with np.load(path) as file:
            return cls(**{name: file[name].astype(kind) for name, kind in _KINDS.items()})

    def write(self, path: Path) -> None:
        """Writes an .npz file, atomically."""
        out = io.BytesIO()
        np.savez(out, ids=self.ids, targets=self.targets, text=self.text, log_p=self.log_p.astype(np.float32))
        write_bytes(path, out.getvalue())


_KINDS: dict[str, Any] = {"ids": str, "targets": np.float64, "text": np.float64, "log_p": np.float64}


def read_answers(settings: Settings, ingest: Path, split: str, folder: Path, path: Path) -> None:
    """Reads the images of a split with the model in `folder` and writes `path`.

    Args:
        split: test, or val: then only the images that choices are made on.
    """
    from components.shared.model.loading import load

    model, processor = load(folder, settings.model)
    read = _read_test if split == "test" else _read_tune
    read(settings, ingest, folder, model, processor).write(path)


def _read_test(settings: Settings, ingest: Path, folder: Path, model: "PreTrainedModel", processor: Any) -> Answers:
    from components.evaluate.judging import TestSet, check_unreadable, read_test
    from components.shared.rows.rows import read_table
    from components.shared.scoring.shots import ShotTable

    task = settings.task
    train = read_table(ingest, "train", ["target"])["target"].to_numpy()
    test = TestSet.read(ingest, ShotTable.of(train, task.bin_width, task.resolution, task.many, task.few))
    unreadable: dict[str, str] = {}
    found = read_test(settings, folder.name, model, processor, test, unreadable)
    check_unreadable(unreadable, test, settings.evaluate.max_unreadable)
    found, test = found.without(unreadable), test.without(unreadable)
    return Answers(np.array(test.ids), test.targets, found.values, found.log_p)


def _read_tune(settings: Settings, ingest: Path, folder: Path, model: "PreTrainedModel", processor: Any) -> Answers:
    from components.shared.model.device import device
    from components.shared.model.generation import collect_answers
    from components.shared.model.prompts import max_answer_tokens
    from components.shared.model.validation_file import read_validation
    from components.shared.rows.validation import tune_rows

    model.to(device())
    size, length = settings.evaluate.batch_size, max_answer_tokens(processor, settings.task)
    ids, _, text = collect_answers(model, processor, tune_rows(ingest, size), size, length, settings.task)
    _, known = read_validation(folder)
    return Answers(np.array(ids), known.targets[known.tune], text, known.log_p[known.tune])
