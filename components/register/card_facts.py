"""Collects the figures of a model card that no other tag of a version holds, from the outputs of the steps."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from components.register.served import Served
from components.settings import Model
from components.shared.model.adapter import ADAPTER
from components.shared.model.validation_file import FILE, read_validation
from components.shared.reporting.predictions import TEXT
from components.shared.rows.rows import SPLITS, shards
from components.shared.scoring.answer_rule import ValidationDistributions
from components.shared.scoring.shots import SHOTS
from components.steps import metrics_file

STEPS_OF_TRAINING = ("steps", "best_step", "method")


def card_facts(
    served: Served, model: Model, ingest: Path, trained: Mapping[str, Path], evaluate: Path
) -> dict[str, Any]:
    """Figures about data, training and test, as JSON content. What the outputs do not hold is left out.

    Args:
        model: the settings of the model that training started from.
        trained: `sft` and `grpo`, the model folders.
        evaluate: output of evaluate for these models.
    """
    judged = _content(evaluate / "metrics.json")
    own = judged[served.model]
    return {
        "images": {split: sum(pq.read_metadata(path).num_rows for path in shards(ingest, split)) for split in SPLITS},
        **(_by_shot(read_validation(served.weights)[1]) if (served.weights / FILE).exists() else {}),
        "base": _base(model),
        **({"adapter": True} if (served.weights / ADAPTER).exists() else {}),
        "training": {name: _training(folder) for name, folder in trained.items()},
        "titles": _content(evaluate / "titles.json"),
        "balance": None if served.way == TEXT else served.reader.answer.balance,
        "text": own[TEXT],
        "warm_start": judged["sft"][TEXT],
        "distribution": None if served.way == TEXT else own.get("distribution"),
    }


def _content(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _training(folder: Path) -> dict[str, Any]:
    figures = _content(metrics_file(folder))
    return {name: figures[name] for name in STEPS_OF_TRAINING if name in figures}


def _by_shot(known: ValidationDistributions) -> dict[str, dict[str, int]]:
    """Training images, and validation images for choices and for thresholds, by shot group."""
    shots = known.shots_of(known.targets)
    return {
        "train": {group: int(known.counts[known.shots == group].sum()) for group in SHOTS},
        "tune": {group: int((known.tune & (shots == group)).sum()) for group in SHOTS},
        "calibrate": {group: int((~known.tune & (shots == group)).sum()) for group in SHOTS},
    }


def _base(model: Model) -> dict[str, str | None]:
    """What training started from. The path of a local folder says nothing elsewhere, so it is left out."""
    if model.name == "tiny" or Path(model.name).is_dir():
        return {"kind": "tiny" if model.name == "tiny" else "folder"}
    return {"kind": "hub", "id": model.name, "revision": model.revision}
