"""The training set as an endless schedule with random access: which image is shown when, and how it is augmented.

Presentation k shows image `permutation(seed, k // n)[k % n]`, augmented by a generator seeded with (seed, k). Nothing
else matters: no sampler state, no worker, no history. So a run resumed at step s sees the same pictures as an
uninterrupted one, and the G copies of an input in one GRPO step are one picture object.
"""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from PIL import Image

from components.errors import ConcordError
from components.settings import Augment
from components.shared.rows.images import REMEDY, BadImageError, decode_image
from components.shared.rows.rows import shards
from components.shared.training.augment import augment
from components.shared.training.ranks import ranks

Example = dict[str, Any]


def training_rows(ingest: Path, cache: Path) -> Dataset:
    """Returns the training split, memory-mapped; images stay encoded.

    Args:
        ingest: row shards.
        cache: folder for the mapped copy; the ranks of one machine share it.
    """
    from datasets import Image as ImageFeature
    from datasets.utils.logging import disable_progress_bar

    disable_progress_bar()
    files = [str(path) for path in shards(ingest, "train")]
    with ranks().local_main_process_first():
        rows = Dataset.from_parquet(files, cache_dir=str(cache))
    return rows.cast_column("image", ImageFeature(decode=False))


def presentations(
    rows: Dataset,
    count: int,
    seed: int,
    changes: Augment,
    example: Callable[[Example, Image.Image], Example],
    grey_bits: int | None = None,
) -> Dataset:
    """Returns a dataset of `count` presentations for TRL's trainers.

    Args:
        rows: from `training_rows`.
        count: length of the schedule.
        seed: decides order and augmentation.
        changes: the largest changes of a picture.
        example: builds the trainer's row from ours (without the image) and the augmented picture.
        grey_bits: the task's, see `decode_image`.
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
            try:
                picture = decode_image(row.pop("image")["bytes"], grey_bits)
            except BadImageError as error:
                raise ConcordError(f"image {row['id']}: {error}. {REMEDY}") from None
            shown[k] = example(row, augment(picture, changes, np.random.default_rng([seed, 1, k])))
        names = next(iter(shown.values()))
        return {name: [shown[k][name] for k in batch["position"]] for name in names}

    return Dataset.from_dict({"position": np.arange(count)}).with_transform(show)
