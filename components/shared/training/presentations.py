"""The training set as an endless, seekable schedule: which image is shown when, and how it is changed.

Presentation k shows image `permutation(seed, k // n)[k % n]`, changed by a generator seeded with (seed, k). Nothing
else decides it: no sampler state, no worker, no history. So a run that starts again at step s sees what it would have
seen, and the G copies of an input in one GRPO step are one and the same picture.
"""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from PIL import Image

from components.settings import Augment
from components.shared.rows.images import decode_image
from components.shared.rows.rows import shards
from components.shared.training.augment import augment
from components.shared.training.ranks import ranks

Example = dict[str, Any]


def training_rows(ingest: Path, cache: Path) -> Dataset:
    """The training split, memory-mapped; images stay encoded.

    Args:
        cache: folder for the mapped copy, which the ranks of one machine have in common.
    """
    from datasets import Image as ImageFeature
    from datasets.utils.logging import disable_progress_bar

    disable_progress_bar()
    files = [str(path) for path in shards(ingest, "train")]
    with ranks().local_main_process_first():
        rows = Dataset.from_parquet(files, cache_dir=str(cache))
    return rows.cast_column("image", ImageFeature(decode=False))


def presentations(
    rows: Dataset, count: int, seed: int, changes: Augment, example: Callable[[Example, Image.Image], Example]
) -> Dataset:
    """A dataset of `count` presentations for TRL's trainers.

    Args:
        rows: what `training_rows` gives.
        changes: how far a picture may be changed.
        example: makes the trainer's row from ours (image left out) and the changed picture.
    """
    n = len(rows)

    @lru_cache(maxsize=2)
    def permutation(epoch: int) -> np.ndarray:
        return np.random.default_rng([seed, epoch]).permutation(n)

    def show(batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        positions = sorted(set(batch["position"]))
        picked = rows[[int(permutation(k // n)[k % n]) for k in positions]]
        shown: dict[int, Example] = {}
        for i, k in enumerate(positions):
            row = {name: column[i] for name, column in picked.items()}
            picture = decode_image(row.pop("image")["bytes"])
            shown[k] = example(row, augment(picture, changes, np.random.default_rng([seed, 1, k])))
        names = next(iter(shown.values()))
        return {name: [shown[k][name] for k in batch["position"]] for name in names}

    return Dataset.from_dict({"position": np.arange(count)}).with_transform(show)
