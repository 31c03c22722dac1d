"""What the expectations are held against: the shards' fields, a row for each image, a row of figures for the splits."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from components.errors import ConcordError
from components.settings import Task
from components.shared.io.progress import counted
from components.shared.io.text import shown
from components.shared.rows.rows import SPLITS, schema, shards
from components.shared.scoring.shots import SHOTS, ShotTable, label_bins
from components.validate.duplicates import settle
from components.validate.image_scan import looks, parts
from components.validate.perceptual_hash import nearest_in_earlier_split


@dataclass(frozen=True)
class Summary:
    """Figures over all splits.

    Attributes:
        figures: name -> figure.
        examples: name -> lines that say which rows or labels made the figure, for people.
    """

    figures: dict[str, float]
    examples: dict[str, list[str]]

    @property
    def table(self) -> pd.DataFrame:
        """One row, a column a figure."""
        return pd.DataFrame([self.figures])


def field_table(folder: Path) -> pd.DataFrame:
    """A row for each shard and field: `shard`, `field`, and its type as `expected` and as `found`.

    Raises:
        ConcordError: a split has no shard, or a shard is no whole Parquet file.
    """
    found = {path: _fields(path) for split in SPLITS for path in shards(folder, split)}
    subjects = any("subject" in there for there in found.values())  # then in all of them
    wanted = {field.name: str(field.type) for field in schema(subjects)}
    rows = []
    for path, there in found.items():
        rows += [
            {"shard": path.name, "field": name, "expected": wanted.get(name, "no"), "found": there.get(name, "no")}
            for name in {**wanted, **there}
        ]
    return pd.DataFrame(rows)


def _fields(path: Path) -> dict[str, str]:
    try:
        return {field.name: str(field.type) for field in pq.read_schema(path)}
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0][:120]
        raise ConcordError(f"{path}: no whole Parquet file ({reason}). Run the ingest step again.") from None


def row_table(folder: Path, task: Task) -> pd.DataFrame:
    """A row for each image, in the shards' order: split, id, origin, target, subject (None where the shards have
    none), and what a close look at the image gave.

    Columns beside those of `looks`: `decodes`; `side`, the shorter one (empty where undecodable); `finite` (empty where
    the target is); `off_step`, how far the target is from a whole step of the resolution, in steps (empty where the
    target is empty or not finite). A row takes some 300 bytes, its image none.

    Raises:
        ConcordError: a shard is damaged.
    """
    found = parts(folder)
    done = list(counted(looks(found), "decoding images, 8 MB at a time", len(found)))
    table = pa.concat_tables(done).to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)
    table = settle(table, found).drop(columns="reduced")
    if "subject" not in table:
        table["subject"] = None
    steps = table["target"].where(np.isfinite(table["target"])) / task.resolution
    table["off_step"] = (steps - steps.round()).abs()
    table["finite"] = np.isfinite(table["target"]).astype(object).where(table["target"].notna(), None)
    table["side"] = table[["width", "height"]].min(axis=1)
    table["decodes"] = table["fault"].isna()
    return table


def summarise(rows: pd.DataFrame, task: Task, near_bits: int) -> Summary:
    """Leakage between splits, imbalance, and the shot groups of the test split.

    Args:
        near_bits: hashes that differ in no more bits are of pictures that look alike.
        rows: as `row_table` gives it. Rows without a finite target take no part in the counts.
    """
    figures: dict[str, float] = {}
    examples: dict[str, list[str]] = {}
    figures["images_in_two_splits"], examples["images_in_two_splits"] = _shared_images(rows)
    figures["near_duplicates"], examples["near_duplicates"] = _alike_images(rows, near_bits)
    figures["images_with_two_targets"], examples["images_with_two_targets"] = _contradictions(rows)
    if rows["subject"].notna().any():
        figures["subjects_in_two_splits"], examples["subjects_in_two_splits"] = _shared_subjects(rows)
    targets = valid_targets(rows, task)
    counts = {split: _bin_counts(values, task) for split, values in targets.items()}
    train, test = counts["train"], counts["test"]
    figures["train_imbalance"] = float(train.max() / train.min()) if len(train) else 1.0
    examples["train_imbalance"] = _fullest(train, "train")
    for split in ("val", "test"):
        figures[f"{split}_imbalance"] = float(counts[split].max() / counts[split].mean()) if len(counts[split]) else 1.0
        examples[f"{split}_imbalance"] = _fullest(counts[split], split)
    unseen = test[~test.index.isin(train.index)].sort_index()
    figures["test_unseen"] = float(unseen.sum() / max(test.sum(), 1))
    examples["test_unseen"] = [f"{rows} rows with label {label:g}" for label, rows in unseen.head(3).items()]
    table = ShotTable.of(targets["train"], task.bin_width, task.resolution, task.many, task.few)
    test_shots, train_shots = table.shot(targets["test"]), table.shot(targets["train"])
    for shot in SHOTS:
        figures[f"test_rows_{shot}"] = int((test_shots == shot).sum())
        present = int((train_shots == shot).sum())
        examples[f"test_rows_{shot}"] = [f"train has {present} {shot}-shot rows"]
    return Summary(figures, examples)


def valid_targets(rows: pd.DataFrame, task: Task) -> dict[str, np.ndarray]:
    """Split -> its targets that are finite and in the task's range, `(N,)`."""
    known = rows[np.isfinite(rows["target"]) & rows["target"].between(task.low, task.high)]
    return {split: known.loc[known["split"] == split, "target"].to_numpy() for split in SPLITS}


def _bin_counts(targets: np.ndarray, task: Task) -> "pd.Series[int]":
    """Rows per label bin, indexed by the bin's lower end: fullest first, and of equal ones the lowest."""
    width = round(task.bin_width / task.resolution) * task.resolution
    ends = pd.Series(label_bins(targets, task.bin_width, task.resolution) * width)
    return ends.value_counts().sort_index().sort_values(ascending=False, kind="stable")


def _fullest(counts: "pd.Series[int]", split: str) -> list[str]:
    if not len(counts):
        return [f"{split} has no row with a valid target"]
    most, least = counts.index[0], counts.index[-1]
    fullest, emptiest = counts.iloc[0], counts.iloc[-1]
    return [f"{split}: {fullest} rows with label {most:g}, {emptiest} with {least:g}, {counts.mean():.1f} on average"]


def _alike_images(rows: pd.DataFrame, near_bits: int) -> tuple[int, list[str]]:
    """How many images look like one of an earlier split and are not the same, and the most alike of them."""
    known = rows[rows["hash"].notna()]
    order = {split: k for k, split in enumerate(SPLITS)}
    other, apart = nearest_in_earlier_split(known["hash"].tolist(), known["split"].map(order).to_numpy(), near_bits)
    alike = known.assign(other=other, apart=apart)[other >= 0]
    splits_of = known.groupby("content")["split"].nunique()
    alike = alike[alike["content"].map(splits_of) == 1]  # else it is counted as the same
    examples = []
    for row in alike.sort_values("apart", kind="stable").head(3).itertuples():
        twin = known.iloc[row.other]
        examples.append(f"{row.origin} ({row.split}) ~ {twin.origin} ({twin.split}), {row.apart} of 256 bits apart")
    return len(alike), examples


def _shared_subjects(rows: pd.DataFrame) -> tuple[int, list[str]]:
    """How many subjects are in more than one split, and the first of them with a row of each."""
    known = rows[rows["subject"].notna()]
    splits = known.groupby("subject", sort=False)["split"].nunique()
    examples = []
    for subject in splits.index[splits > 1][:3]:
        some = known[known["subject"] == subject].drop_duplicates("split")
        places = ", ".join(f"{row.origin} ({row.split})" for row in some.itertuples())
        examples.append(f"{shown(subject)}: {places}")
    return int((splits > 1).sum()), examples


def _contradictions(rows: pd.DataFrame) -> tuple[int, list[str]]:
    """How many pictures have more than one target, and the first of them with their rows."""
    known = rows[rows["content"].notna() & np.isfinite(rows["target"])]
    targets = known.groupby("content", sort=False)["target"].nunique()
    examples = []
    for content in targets.index[targets > 1][:3]:
        same = known[known["content"] == content].drop_duplicates("target")
        examples.append(" = ".join(f"{row.origin} (target {row.target:g})" for row in same.head(3).itertuples()))
    return int((targets > 1).sum()), examples


def _shared_images(rows: pd.DataFrame) -> tuple[int, list[str]]:
    """How many pictures are in more than one split, and the first of them with their rows."""
    known = rows[rows["content"].notna()]
    repeated = known[known.duplicated("content", keep=False)]
    splits = repeated.groupby("content", sort=False)["split"].nunique()
    shared = splits.index[splits > 1]
    examples = []
    for content in shared[:3]:
        same = repeated[repeated["content"] == content].drop_duplicates("split")
        examples.append(" = ".join(f"{row.origin} ({row.split})" for row in same.itertuples()))
    return len(shared), examples
