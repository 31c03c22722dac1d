"""Judgement of the arms: predictions once a model, then paired differences over images and seeds."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from components.settings import Settings
from components.shared.data.rows import read_rows, read_table
from components.shared.regression.answers import parse_answers
from components.shared.regression.metrics import Predictions, evaluate, paired_difference
from components.shared.regression.shots import GROUPS, ShotTable

ARMS = {"sft": "SFT continued", "mae": "GRPO, MAE reward", "ccc": "CCC-GRPO"}


def predict(work: tuple[Settings, Path, str, Path, Path, int]) -> None:
    """Greedy answers of one model to a split, kept at `place`; what stands there is not made again."""
    settings, ingest, split, model_folder, place, threads = work
    if place.exists():
        return
    import torch

    from components.shared.vlm.generation import answer
    from components.shared.vlm.models import load

    torch.set_num_threads(threads)
    model, processor = load(model_folder, settings.model)
    ids: list[str] = []
    texts: list[str] = []
    limits = settings.evaluate
    for names, raw in answer(model, processor, read_rows(ingest, split), limits.batch_size, limits.max_new_tokens):
        ids += names
        texts += raw
    values = parse_answers(texts, settings.task.low, settings.task.high)
    table = pa.table({"id": ids, "text": texts, "value": pa.array(values, from_pandas=True)})
    partial = place.with_suffix(".partial")
    pq.write_table(table, partial)
    partial.replace(place)


def judge(settings: Settings, ingest: Path, split: str, places: dict[str, Path], seeds: list[int]) -> dict[str, Any]:
    """Metrics of every model, and CCC-GRPO against each other arm and the warm start.

    Args:
        places: predictions of `warm` and of ARM-SEED.
    """
    task = settings.task
    rows = read_table(ingest, split, ["id", "target"])
    train = ShotTable.of(read_table(ingest, "train", ["target"])["target"], *_bins(settings))
    targets = rows["target"].to_numpy()
    shots = train.shot(targets)

    def load(place: Path) -> Predictions:
        table = pq.read_table(place)
        if table["id"].to_pylist() != rows["id"].to_pylist():
            raise ValueError(f"{place}: not the answers to this {split} split; remove it and run again")
        values = table["value"].to_numpy(zero_copy_only=False).astype(np.float64)
        return Predictions(targets, values, shots, task.low, task.high, task.resolution)

    found = {name: load(place) for name, place in places.items()}
    limits = settings.evaluate
    models = {name: evaluate(p, limits.bootstrap, limits.seed) for name, p in found.items()}
    errors = {arm: [found[f"{arm}-{seed}"].errors for seed in seeds] for arm in ARMS}
    errors["warm"] = [found["warm"].errors] * len(seeds)
    paired = {
        f"{ours} - {theirs}": {
            group: paired_difference(errors[ours], errors[theirs], found["warm"].members(group), 2000, limits.seed)
            for group in GROUPS
        }
        for ours, theirs in (("ccc", "warm"), ("ccc", "mae"), ("ccc", "sft"), ("mae", "warm"), ("sft", "warm"))
    }
    return {"split": split, "seeds": seeds, "models": models, "paired": paired}


def _bins(settings: Settings) -> tuple[float, float, int, int]:
    task = settings.task
    return task.bin_width, task.resolution, task.many, task.few
