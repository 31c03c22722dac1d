"""Drift: how far a new data version is from the one that the champion was trained on.

The measure is the population stability index, the sum over classes of (q - p) ln(q / p), p the shares then and q now:
0 for the same shares; by the custom of credit scoring (Siddiqi 2006, "Credit Risk Scorecards") below 0.1 is no change
to speak of and above 0.25 a large one. Labels are counted in ten equal stretches of the task's range, and not in
deciles as scoring has it, where a tail would be one class.

In few rows an index is large by chance: its size follows the number of rows (Yurdakul and Naranjo 2020, "Statistical
properties of the population stability index"), and where stretches are nearly empty no formula holds. So the same rows
are dealt anew into two sets of the same sizes, many times: what 99 of 100 such indices stay below counts as chance.
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
from components.shared.tracking.champion import champion
from components.shared.tracking.connection import mlflow_errors
from components.shared.tracking.step_run import INPUT, StepRun, run_that_read
from components.validate.profile import VERSION

ARTIFACT = "validate/profile.json"  # of the validate run
Array = NDArray[np.float64]
STRETCHES = 10
DEALS = 1000
CHANCE = 0.99


@dataclass(frozen=True)
class Shift:
    """One distribution, then and now.

    Attributes:
        psi: population stability index.
        chance: what it would stay below by chance, 99 times of 100.
        rows: then and now.
        words: what has changed most, for people.
    """

    psi: float
    chance: float
    rows: tuple[int, int]
    words: str

    @property
    def beyond_chance(self) -> float:
        """The index, or 0 where chance alone would give as much."""
        return self.psi if self.psi > self.chance else 0.0


@dataclass(frozen=True)
class Drift:
    """What came of the comparison.

    Attributes:
        words: a line for people: compared with what, or why not.
        labels: split -> shift of its labels.
        images: `size` and `mode` -> shift over all splits.
    """

    words: str
    labels: Mapping[str, Shift] = field(default_factory=dict)
    images: Mapping[str, Shift] = field(default_factory=dict)

    @property
    def compared(self) -> bool:
        """Whether there was anything to compare with."""
        return bool(self.labels or self.images)

    @property
    def figures(self) -> dict[str, float]:
        """What the expectations are held against: of each kind the largest index beyond chance."""
        labels = max((shift.beyond_chance for shift in self.labels.values()), default=0.0)
        return {"label_drift": labels} | {f"image_{name}_drift": s.beyond_chance for name, s in self.images.items()}

    @property
    def table(self) -> pd.DataFrame:
        """One row, a column a figure."""
        return pd.DataFrame([self.figures])

    @property
    def examples(self) -> dict[str, list[str]]:
        """Figure -> lines that say what has changed."""
        lines = [f"{split}: {_line(shift)}" for split, shift in self.labels.items() if shift.beyond_chance]
        return {"label_drift": lines} | {f"image_{name}_drift": [_line(s)] for name, s in self.images.items()}

    @property
    def indices(self) -> dict[str, float]:
        """All of them by name, for MLflow."""
        labels = {f"drift.labels.{split}": shift.psi for split, shift in self.labels.items()}
        return labels | {f"drift.image_{name}": shift.psi for name, shift in self.images.items()}


def _line(shift: Shift) -> str:
    return f"index {shift.psi:.3g} (by chance up to {shift.chance:.2g}); {shift.words}"


def drift(settings: Settings, track: StepRun, found: Mapping[str, Any]) -> Drift:
    """Holds today's data against those of the champion; never fails, whatever becomes of the registry.

    Args:
        track: this step's run; its store has the registry and the run that looked at the champion's data.
        found: today's profile.
    """
    name = settings.validation.drift.model
    if name is None:
        return Drift("not compared with a champion's data: validate.drift.model is null")
    try:
        words, before = _champion_s_data(track, name)
    except Exception as error:  # the registry, its artifact store and their clients may fail in any way
        told_of = " ".join(masked(str(error)).split())[:300]
        return Drift(f"not compared with the data of the champion of {name}: {told_of}")
    if before is None:
        return Drift(words)
    if before["unit"] != found["unit"]:
        return Drift(f"not compared with {words}: its labels are in {before['unit']!r}, today's in {found['unit']!r}")
    return compare(before, found, settings.task, f"compared with {words}")


def _champion_s_data(track: StepRun, name: str) -> tuple[str, dict[str, Any] | None]:
    """Whose data they are and their profile; or why there is none, and None."""
    version = champion(track.client, name)
    if version is None:
        return f"not compared with a champion's data: {name} has no champion", None
    called = f"the data of the champion (version {version.version} of {name})"
    digest = version.tags.get(f"{INPUT}ingest")
    if digest is None:
        return f"not compared with {called}: its tags do not say which they are", None
    if digest == track.inputs.get("ingest"):
        return f"the same as {called}", None
    with mlflow_errors(f"find the run that validated {called}"):
        run_id = run_that_read(track.client, "validate", "ingest", digest)
        if run_id is None:
            raise ConcordError(f"no finished validate run has seen them (ingest {digest[:8]})")
        with tempfile.TemporaryDirectory() as folder:
            place = track.client.download_artifacts(run_id, ARTIFACT, folder)
            before: dict[str, Any] = json.loads(Path(place).read_text(encoding="utf-8"))
    if before["version"] != VERSION:
        raise ConcordError(f"run {run_id} describes them in another form ({before['version']})")
    return called, before


def compare(before: Mapping[str, Any], now: Mapping[str, Any], task: Task, words: str) -> Drift:
    """Two profiles, held against each other.

    Args:
        words: of the outcome.
    """
    then, today = before["splits"], now["splits"]
    labels = {split: _label_shift(then, today, split, task) for split in SPLITS}
    images = {name: _class_shift(_total(then, f"{name}s"), _total(today, f"{name}s")) for name in ("size", "mode")}
    return Drift(
        words,
        {split: shift for split, shift in labels.items() if shift},
        {name: shift for name, shift in images.items() if shift},
    )


def _label_shift(then: Mapping[str, Any], today: Mapping[str, Any], split: str, task: Task) -> Shift | None:
    """The labels of a split; None where it was, or is, empty."""
    sides = [np.array(side[split]["labels"], float).reshape(-1, 2) for side in (then, today)]
    if not all(len(side) for side in sides):
        return None
    counts = np.stack([_by_stretch(side, task) for side in sides])
    means = [np.average(side[:, 0], weights=side[:, 1]) for side in sides]
    trained = np.array(then["train"]["labels"], float).reshape(-1, 2)
    rare = [_few_share(side, trained, task) for side in sides]
    words = f"mean {means[1]:.4g}, was {means[0]:.4g}; labels that were few-shot then: {_then_now(*rare)}"
    return _shift(counts, words)


def _by_stretch(labels: Array, task: Task) -> Array:
    """Rows in each of ten equal stretches of the range, from (label, rows) `(K, 2)`; the outer ones hold what lies
    beyond."""
    places = np.clip((labels[:, 0] - task.low) / (task.high - task.low) * STRETCHES, 0, STRETCHES - 1).astype(int)
    return np.bincount(places, labels[:, 1], STRETCHES).astype(np.float64)


def _few_share(labels: Array, trained: Array, task: Task) -> float:
    """Share of the rows whose label is few-shot by the champion's training rows."""
    bins = label_bins(trained[:, 0], task.bin_width, task.resolution)
    counts = {int(bin): int(trained[bins == bin, 1].sum()) for bin in np.unique(bins)}
    table = ShotTable(counts, task.bin_width, task.resolution, task.many, task.few)
    return float(labels[table.shot(labels[:, 0]) == "few", 1].sum() / labels[:, 1].sum())


def _class_shift(then: Mapping[str, int], today: Mapping[str, int]) -> Shift | None:
    """Of named classes; None where there are none on a side."""
    names = sorted({*then, *today})
    counts = np.array([[side.get(name, 0) for name in names] for side in (then, today)], float)
    if not counts.sum(axis=1).all():
        return None
    shares = counts / counts.sum(axis=1, keepdims=True)
    most = int(np.argmax(shares[1] - shares[0]))
    return _shift(counts, f"{names[most]}: {_then_now(*shares[:, most])}")


def _then_now(then: float, now: float) -> str:
    return f"{100 * now:.1f} % of the rows, {100 * then:.1f} % before"


def _total(splits: Mapping[str, Any], kind: str) -> dict[str, int]:
    """Over all splits."""
    total: dict[str, int] = {}
    for split in SPLITS:
        for name, count in splits[split][kind].items():
            total[name] = total.get(name, 0) + count
    return total


def _shift(counts: Array, words: str) -> Shift:
    """From rows then and now in each class `(2, K)`."""
    used = counts[:, counts.sum(axis=0) > 0].astype(int)
    rows = used.sum(axis=1)
    rng = np.random.default_rng(0)
    dealt = rng.multivariate_hypergeometric(used.sum(axis=0), rows[0], DEALS)
    chance = np.quantile(stability_index(dealt, used.sum(axis=0) - dealt), CHANCE)
    return Shift(float(stability_index(used[0], used[1])), float(chance), (int(rows[0]), int(rows[1])), words)


def stability_index(then: Any, now: Any) -> Array:
    """Population stability index of counts `(..., K)`: `(...)`. Half a row is added to every class, so that an empty
    one has a logarithm."""
    then, now = np.asarray(then) + 0.5, np.asarray(now) + 0.5
    p, q = then / then.sum(axis=-1, keepdims=True), now / now.sum(axis=-1, keepdims=True)
    index: Array = ((q - p) * np.log(q / p)).sum(axis=-1)
    return index
