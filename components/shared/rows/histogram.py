"""The distribution of labels over the splits, as a histogram and as metrics."""

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from components.settings import Task
from components.shared.rows.rows import SPLITS
from components.shared.scoring.answers import decimals
from components.shared.scoring.shots import SHOTS, ShotTable, label_bins


@dataclass(frozen=True)
class LabelBin:
    """One bin of labels.

    Attributes:
        label: the bin's lower end, in the task's unit.
        rows: split -> number of rows.
        shot: many, medium or few, by the number of rows in train.
    """

    label: float
    rows: Mapping[str, int]
    shot: str


def label_histogram(targets: Mapping[str, ArrayLike], task: Task) -> list[LabelBin]:
    """Every non-empty bin, in ascending order.

    Args:
        targets: split -> finite targets, in the task's unit.
    """
    with np.errstate(invalid="ignore"):  # a target too large for an integer; the validate step finds it out of range
        counts = {
            split: Counter(label_bins(targets[split], task.bin_width, task.resolution).tolist()) for split in SPLITS
        }
        steps = round(task.bin_width / task.resolution)
        indices = sorted(set().union(*counts.values()))
        labels = [round(index * steps * task.resolution, decimals(task.resolution)) for index in indices]
        table = ShotTable(counts["train"], task.bin_width, task.resolution, task.many, task.few)
        shots = table.shot(labels)
    return [
        LabelBin(label, {split: counts[split][index] for split in SPLITS}, str(shot))
        for index, label, shot in zip(indices, labels, shots, strict=True)
    ]


def histogram_csv(histogram: Sequence[LabelBin], task: Task) -> str:
    """The histogram as CSV, one line per bin: label, rows in train, val and test, shot."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["label", *SPLITS, "shot"])
    for bin in histogram:
        label = f"{bin.label:.{decimals(task.resolution)}f}"
        writer.writerow([label, *(bin.rows[split] for split in SPLITS), bin.shot])
    return out.getvalue()


def distribution_metrics(histogram: Sequence[LabelBin]) -> dict[str, object]:
    """Metrics of a histogram: rows and label bins per split, largest over smallest train bin, test rows per shot."""
    rows = {split: sum(bin.rows[split] for bin in histogram) for split in SPLITS}
    test = {shot: sum(bin.rows["test"] for bin in histogram if bin.shot == shot) for shot in SHOTS}
    train = [bin.rows["train"] for bin in histogram if bin.rows["train"]]
    return {
        "rows": rows,
        "label_bins": {split: sum(bin.rows[split] > 0 for bin in histogram) for split in SPLITS},
        "train_bins_per_shot": {
            shot: sum(bin.rows["train"] > 0 and bin.shot == shot for bin in histogram) for shot in SHOTS
        },
        "imbalance": max(train) / min(train) if train else None,
        "test_rows": test,
        "test_share": {shot: count / rows["test"] if rows["test"] else None for shot, count in test.items()},
    }


def shot_ranges(shots: ShotTable, low: float, high: float) -> list[tuple[float, float, str]]:
    """Start, end and shot group of each run of adjacent label bins in [low, high] with the same shot group.

    Takes time for the bins that have training samples, not for all bins of the range.
    """
    first, last = (int(bin) for bin in label_bins([low, high], shots.width, shots.resolution))
    counted = np.array([bin for bin in shots.counts if first <= bin <= last], np.int64)
    # The group changes at the range's first bin, at a counted bin or right after one, and nowhere else.
    bins = np.unique(np.concatenate([[first], counted, counted + 1]))
    bins = bins[bins <= last]
    groups = shots.group(np.array([shots.counts.get(bin, 0) for bin in bins.tolist()]))
    starts = np.flatnonzero(np.append(True, groups[1:] != groups[:-1]))
    edges = [bin * shots.width - shots.resolution / 2 for bin in [*bins[starts].tolist(), last + 1]]
    return [(*ends, str(group)) for ends, group in zip(pairwise(edges), groups[starts], strict=True)]
