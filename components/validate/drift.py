"""Drift: how much a new data version differs from the one that the champion was trained on.

The measure is the population stability index (PSI), the sum over classes of (q - p) ln(q / p), with p the shares before
and q the shares now. It is 0 for equal shares; in credit scoring, below 0.1 counts as no relevant change and above 0.25
as a large one (Siddiqi 2006, "Credit Risk Scorecards"). Labels are counted in ten equal bins of the task's range, and
not in deciles as in scoring, where the whole tail would be one class.

With few rows the index is large by chance: its distribution depends on the number of rows (Yurdakul and Naranjo 2020,
"Statistical properties of the population stability index"), and no formula holds when bins are nearly empty. So the
pooled rows are split at random many times into two sets of the same sizes. An index above the 99th percentile of these
random splits counts as significant.
"""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from components.errors import ConcordError
from components.settings import Settings, Task
from components.shared.io.secrets import masked
from components.shared.rows.rows import SPLITS
from components.shared.scoring.shots import ShotTable, label_bins
from components.shared.tracking.champion import champion, other_task
from components.shared.tracking.connection import mlflow_errors
from components.shared.tracking.past_runs import find_consumer
from components.shared.tracking.step_run import StepRun
from components.shared.tracking.tags import INPUT
from components.validate.profile import VERSION

PROFILE_ARTIFACT = "validate/profile.json"  # of the validate run
Array = NDArray[np.float64]
LABEL_BINS = 10
RANDOM_SPLITS = 1000
SIGNIFICANCE_QUANTILE = 0.99


@dataclass(frozen=True)
class Shift:
    """The change of one distribution.

    Attributes:
        psi: population stability index.
        chance: 99th percentile of the index of random splits of the same rows.
        rows: number of rows before and now.
        summary: what changed most, in words.
    """

    psi: float
    chance: float
    rows: tuple[int, int]
    summary: str

    @property
    def significant_psi(self) -> float:
        """The index, or 0 if chance explains it."""
        return self.psi if self.psi > self.chance else 0.0

    def to_json(self) -> dict[str, Any]:
        """Returns the entry of drift.json."""
        return {"psi": self.psi, "chance": self.chance, "rows": self.rows, "words": self.summary}

    def __str__(self) -> str:
        """One line for reports."""
        return f"index {self.psi:.3g} (by chance up to {self.chance:.2g}); {self.summary}"


@dataclass(frozen=True)
class DriftReport:
    """The comparison of the current data with the champion's.

    Attributes:
        summary: one line: what the data were compared with, or why they were not compared.
        labels: split -> shift of its labels.
        images: `size` and `mode` -> shift over all splits.
    """

    summary: str
    labels: Mapping[str, Shift] = field(default_factory=dict)
    images: Mapping[str, Shift] = field(default_factory=dict)

    @property
    def compared(self) -> bool:
        """Whether there were data to compare with."""
        return bool(self.labels or self.images)

    @property
    def figures(self) -> dict[str, float]:
        """Check name -> largest significant index, the figures that the expectations check."""
        labels = max((shift.significant_psi for shift in self.labels.values()), default=0.0)
        return {"label_drift": labels} | {f"image_{name}_drift": s.significant_psi for name, s in self.images.items()}

    @property
    def table(self) -> pd.DataFrame:
        """The figures as one row, a column for each."""
        return pd.DataFrame([self.figures])

    @property
    def examples(self) -> dict[str, list[str]]:
        """Check name -> lines that say what changed."""
        lines = [f"{split}: {shift}" for split, shift in self.labels.items() if shift.significant_psi]
        return {"label_drift": lines} | {f"image_{name}_drift": [str(s)] for name, s in self.images.items()}

    @property
    def metrics(self) -> dict[str, float]:
        """MLflow metric -> index, of all shifts."""
        labels = {f"drift.labels.{split}": shift.psi for split, shift in self.labels.items()}
        return labels | {f"drift.image_{name}": shift.psi for name, shift in self.images.items()}

    def to_json(self) -> dict[str, Any]:
        """Returns the content of drift.json."""
        labels = {split: shift.to_json() for split, shift in self.labels.items()}
        images = {name: shift.to_json() for name, shift in self.images.items()}
        return {"words": self.summary, "labels": labels, "images": images}


def measure_drift(settings: Settings, track: StepRun, profile: Mapping[str, Any]) -> DriftReport:
    """Compares the current data with the champion's. Errors of the registry are reported in the summary, not raised.

    Args:
        settings: name of the registered model, and its task.
        track: this step's run; its store has the registry and the run that validated the champion's data.
        profile: of the current data.
    """
    if settings.validation.drift is None:
        return DriftReport("not compared with a champion's data: validate.drift is null")
    name = settings.registered_model
    try:
        data, before = _champion_profile(track, name, settings.task)
    except Exception as error:  # the registry, its artifact store and their clients may raise anything
        reason = " ".join(masked(str(error)).split())[:300]
        return DriftReport(f"not compared with the data of the champion of {name}: {reason}")
    if before is None:
        return DriftReport(data)
    if before["unit"] != profile["unit"]:
        units = f"its labels are in {before['unit']!r}, the current ones in {profile['unit']!r}"
        return DriftReport(f"not compared with {data}: {units}")
    return compare_profiles(before, profile, settings.task, f"compared with {data}")


def _champion_profile(track: StepRun, name: str, task: Task) -> tuple[str, dict[str, Any] | None]:
    """Returns a name for the champion's data and their profile; without a profile, the reason and None."""
    version = champion(track.client, name)
    if version is None:
        return f"not compared with a champion's data: {name} has no champion", None
    data = f"the data of the champion (version {version.version} of {name})"
    if difference := other_task(version, task):
        return f"not compared with {data}, which reads something else: {difference}", None
    digest = version.tags.get(f"{INPUT}ingest")
    if digest is None:
        return f"not compared with {data}: its tags do not name them", None
    if digest == track.inputs.get("ingest"):
        return f"the same as {data}", None
    with mlflow_errors(f"find the run that validated {data}"):
        run_id = find_consumer(track.client, "validate", "ingest", digest)
        if run_id is None:
            raise ConcordError(f"no finished validate run has read them (ingest {digest[:8]})")
        with tempfile.TemporaryDirectory() as folder:
            path = track.client.download_artifacts(run_id, PROFILE_ARTIFACT, folder)
            before: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    if before["version"] != VERSION:
        raise ConcordError(f"the profile of run {run_id} has format version {before['version']}, not {VERSION}")
    return data, before


def compare_profiles(before: Mapping[str, Any], now: Mapping[str, Any], task: Task, summary: str) -> DriftReport:
    """Compares two profiles.

    Args:
        before: profile of the champion's data.
        now: profile of the current data.
        task: its range and label bins.
        summary: of the report.
    """
    before, now = before["splits"], now["splits"]
    labels = {split: _label_shift(before, now, split, task) for split in SPLITS}
    images = {name: _class_shift(_total(before, f"{name}s"), _total(now, f"{name}s")) for name in ("size", "mode")}
    return DriftReport(
        summary,
        {split: shift for split, shift in labels.items() if shift},
        {name: shift for name, shift in images.items() if shift},
    )


def _label_shift(before: Mapping[str, Any], now: Mapping[str, Any], split: str, task: Task) -> Shift | None:
    """The shift of a split's labels; None if the split is empty in one of the versions."""
    sides = [np.array(side[split]["labels"], float).reshape(-1, 2) for side in (before, now)]
    if not all(len(side) for side in sides):
        return None
    counts = np.stack([_label_counts(side, task) for side in sides])
    means = [np.average(side[:, 0], weights=side[:, 1]) for side in sides]
    trained = np.array(before["train"]["labels"], float).reshape(-1, 2)
    few_shares = [_few_share(side, trained, task) for side in sides]
    summary = f"mean {means[1]:.4g}, was {means[0]:.4g}; labels that were few-shot before: {_shares(*few_shares)}"
    return _shift(counts, summary)


def _label_counts(labels: Array, task: Task) -> Array:
    """Rows in each of ten equal bins of the range, from (label, rows) `(K, 2)`; the outer bins include all beyond."""
    bins = np.clip((labels[:, 0] - task.low) / (task.high - task.low) * LABEL_BINS, 0, LABEL_BINS - 1).astype(int)
    return np.bincount(bins, labels[:, 1], LABEL_BINS).astype(np.float64)


def _few_share(labels: Array, trained: Array, task: Task) -> float:
    """Share of the rows whose label is few-shot in the champion's training rows."""
    bins = label_bins(trained[:, 0], task.bin_width, task.resolution)
    counts = {int(bin): int(trained[bins == bin, 1].sum()) for bin in np.unique(bins)}
    table = ShotTable(counts, task.bin_width, task.resolution, task.many, task.few)
    return float(labels[table.shot(labels[:, 0]) == "few", 1].sum() / labels[:, 1].sum())


def _class_shift(before: Mapping[str, int], now: Mapping[str, int]) -> Shift | None:
    """The shift of named classes; None if one of the versions has no rows."""
    names = sorted({*before, *now})
    counts = np.array([[side.get(name, 0) for name in names] for side in (before, now)], float)
    if not counts.sum(axis=1).all():
        return None
    shares = counts / counts.sum(axis=1, keepdims=True)
    largest = int(np.argmax(shares[1] - shares[0]))
    return _shift(counts, f"{names[largest]}: {_shares(*shares[:, largest])}")


def _shares(before: float, now: float) -> str:
    return f"{100 * now:.1f} % of the rows, {100 * before:.1f} % before"


def _total(splits: Mapping[str, Any], kind: str) -> dict[str, int]:
    """Counts over all splits."""
    total: dict[str, int] = {}
    for split in SPLITS:
        for name, count in splits[split][kind].items():
            total[name] = total.get(name, 0) + count
    return total


def _shift(counts: Array, summary: str) -> Shift:
    """Computes the shift from the rows of each class before and now, `(2, K)`."""
    used = counts[:, counts.sum(axis=0) > 0].astype(int)
    rows = used.sum(axis=1)
    rng = np.random.default_rng(0)
    random_splits = rng.multivariate_hypergeometric(used.sum(axis=0), rows[0], RANDOM_SPLITS)
    indices = stability_index(random_splits, used.sum(axis=0) - random_splits)
    chance = np.quantile(indices, SIGNIFICANCE_QUANTILE)
    return Shift(float(stability_index(used[0], used[1])), float(chance), (int(rows[0]), int(rows[1])), summary)


def stability_index(before: Any, now: Any) -> Array:
    """Population stability index of counts `(..., K)`: `(...)`. Adds half a row to each class, so that the logarithm of
    an empty class exists."""
    before, now = np.asarray(before) + 0.5, np.asarray(now) + 0.5
    p, q = before / before.sum(axis=-1, keepdims=True), now / now.sum(axis=-1, keepdims=True)
    index: Array = ((q - p) * np.log(q / p)).sum(axis=-1)
    return index
