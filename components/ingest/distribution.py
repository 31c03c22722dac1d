"""How the labels are distributed over the splits, as a histogram and as figures."""

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from components.settings import Task
from components.shared.data.rows import SPLITS
from components.shared.regression.answers import decimals
from components.shared.regression.shots import SHOTS, ShotTable, label_bins


@dataclass(frozen=True)
class LabelBin:
    """One bin of labels.

    Attributes:
        label: its lower end, in the task's unit.
        rows: split -> how many.
        shot: many, medium or few, by the rows in train.
    """

    label: float
    rows: Mapping[str, int]
    shot: str


def label_histogram(targets: Mapping[str, Sequence[float]], task: Task) -> list[LabelBin]:
    """Every bin that holds a row, in ascending order.

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
    """A line a bin: label, rows in train, val and test, shot."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["label", *SPLITS, "shot"])
    for bin in histogram:
        label = f"{bin.label:.{decimals(task.resolution)}f}"
        writer.writerow([label, *(bin.rows[split] for split in SPLITS), bin.shot])
    return out.getvalue()


def balance(histogram: Sequence[LabelBin], max_per_label: int) -> dict[str, dict[str, int]]:
    """How far val and test are from the balanced rule, in rows.

    Returns:
        Split -> `wanted` by the rule, `met` of these, and `over`: rows of labels that have enough already.
    """
    found = {}
    for split in ("val", "test"):
        wanted = [min(sum(bin.rows.values()) // 3, max_per_label) for bin in histogram]
        got = [bin.rows[split] for bin in histogram]
        met = sum(min(pair) for pair in zip(wanted, got, strict=True))
        found[split] = {"wanted": sum(wanted), "met": met, "over": sum(got) - met}
    return found


def share_metrics(histogram: Sequence[LabelBin]) -> dict[str, object]:
    """Rows and label bins per split, the fullest train bin over the emptiest, and the test rows in each shot group."""
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
