"""Builds the tables that the expectations check: fields of the shards, one row per image, and summary figures."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from components.errors import ConcordError
from components.settings import Task
from components.shared.io.progress import with_progress
from components.shared.io.text import quoted
from components.shared.rows.rows import SPLITS, schema, shards
from components.shared.scoring.shots import SHOTS, ShotTable, label_bins
from components.validate.duplicates import confirm_duplicates
from components.validate.image_scan import row_groups, scan_images
from components.validate.perceptual_hash import nearest_in_earlier_split


@dataclass(frozen=True)
class Summary:
    """Figures over all splits.

    Attributes:
        figures: name -> figure.
        examples: name -> lines that show the rows or labels behind the figure.
    """

    figures: dict[str, float]
    examples: dict[str, list[str]]

    @property
    def table(self) -> pd.DataFrame:
        """The figures as one row, a column for each."""
        return pd.DataFrame([self.figures])


def field_table(folder: Path) -> pd.DataFrame:
    """Returns one row for each shard and field: `shard`, `field`, and its `expected` and `found` type.

    Raises:
        ConcordError: a split has no shard, or a shard is not a complete Parquet file.
    """
    shard_fields = {path: _fields(path) for split in SPLITS for path in shards(folder, split)}
    subjects = any("subject" in fields for fields in shard_fields.values())  # then all shards must have it
    expected = {field.name: str(field.type) for field in schema(subjects)}
    rows = []
    for path, fields in shard_fields.items():
        rows += [
            {"shard": path.name, "field": name, "expected": expected.get(name, "no"), "found": fields.get(name, "no")}
            for name in {**expected, **fields}
        ]
    return pd.DataFrame(rows)


def _fields(path: Path) -> dict[str, str]:
    try:
        return {field.name: str(field.type) for field in pq.read_schema(path)}
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0][:120]
        raise ConcordError(f"{path}: not a complete Parquet file ({reason}). Run the ingest step again.") from None


def row_table(folder: Path, task: Task) -> pd.DataFrame:
    """Returns one row per image, in the order of the shards: split, id, origin, target, subject (None if the shards
    have none), and the description of the image.

    Columns in addition to those of `scan_images`: `decodes`; `side`, the shorter side (empty if the image cannot be
    decoded); `finite` (empty if the target is); `off_step`, the distance of the target from the nearest multiple of the
    resolution, in steps (empty if the target is empty or not finite). A row takes about 300 bytes; images are not kept.

    Raises:
        ConcordError: a shard is damaged.
    """
    groups = row_groups(folder)
    scanned = list(with_progress(scan_images(groups, task.grey_bits), "decoding images, 8 MB at a time", len(groups)))
    table = pa.concat_tables(scanned).to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)
    table = confirm_duplicates(table, groups, task.grey_bits).drop(columns="reduced")
    if "subject" not in table:
        table["subject"] = None
    steps = table["target"].where(np.isfinite(table["target"])) / task.resolution
    table["off_step"] = (steps - steps.round()).abs()
    table["finite"] = np.isfinite(table["target"]).astype(object).where(table["target"].notna(), None)
    table["side"] = table[["width", "height"]].min(axis=1)
    table["decodes"] = table["fault"].isna()
    return table


def summarise(rows: pd.DataFrame, task: Task, near_bits: int) -> Summary:
    """Computes leakage between splits, imbalance, and the sizes of the test split's shot groups.

    Args:
        rows: as from `row_table`. Rows without a finite target are not counted.
        task: its range, bins and shot limits.
        near_bits: images whose perceptual hashes differ in at most this many bits are near duplicates.
    """
    figures: dict[str, float] = {}
    examples: dict[str, list[str]] = {}
    figures["images_in_two_splits"], examples["images_in_two_splits"] = _shared_images(rows)
    figures["near_duplicates"], examples["near_duplicates"] = _near_duplicates(rows, near_bits)
    figures["images_with_two_targets"], examples["images_with_two_targets"] = _images_with_two_targets(rows)
    figures["image_range"], examples["image_range"] = _range_used(rows)
    figures["image_frames"], examples["image_frames"] = _more_frames(rows)
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
    """Returns split -> its targets that are finite and in the task's range, `(N,)`."""
    known = rows[np.isfinite(rows["target"]) & rows["target"].between(task.low, task.high)]
    return {split: known.loc[known["split"] == split, "target"].to_numpy() for split in SPLITS}


def _bin_counts(targets: np.ndarray, task: Task) -> "pd.Series[int]":
    """Rows per label bin, indexed by the bin's lower end, sorted by rows (descending), then by label."""
    width = round(task.bin_width / task.resolution) * task.resolution
    ends = pd.Series(label_bins(targets, task.bin_width, task.resolution) * width)
    return ends.value_counts().sort_index().sort_values(ascending=False, kind="stable")


def _fullest(counts: "pd.Series[int]", split: str) -> list[str]:
    if not len(counts):
        return [f"{split} has no row with a valid target"]
    most, least = counts.index[0], counts.index[-1]
    fullest, emptiest = counts.iloc[0], counts.iloc[-1]
    return [f"{split}: {fullest} rows with label {most:g}, {emptiest} with {least:g}, {counts.mean():.1f} on average"]


def _near_duplicates(rows: pd.DataFrame, near_bits: int) -> tuple[int, list[str]]:
    """Counts images that look like one of an earlier split but are not identical, with the nearest as examples."""
    known = rows[rows["hash"].notna()]
    order = {split: k for k, split in enumerate(SPLITS)}
    other, distance = nearest_in_earlier_split(known["hash"].tolist(), known["split"].map(order).to_numpy(), near_bits)
    near = known.assign(other=other, distance=distance)[other >= 0]
    splits_of = known.groupby("content")["split"].nunique()
    near = near[near["content"].map(splits_of) == 1]  # others are counted by images_in_two_splits
    examples = []
    for row in near.sort_values("distance", kind="stable").head(3).itertuples():
        twin = known.iloc[row.other]
        examples.append(f"{row.origin} ({row.split}) ~ {twin.origin} ({twin.split}), {row.distance} of 256 bits apart")
    return len(near), examples


def _range_used(rows: pd.DataFrame) -> tuple[float, list[str]]:
    """Largest value of all 16-bit images as a share of their range, and the image that has it; 1 if there are none."""
    deep = rows[rows["peak"].notna()]
    if deep.empty:
        return 1.0, []
    brightest = deep.loc[deep["peak"].astype(float).idxmax()]
    share = f"{brightest.peak:.1%} of the range"
    return float(brightest.peak), [f"{len(deep)} images have 16 bits; the largest value is {share}: {brightest.origin}"]


def _more_frames(rows: pd.DataFrame) -> tuple[int, list[str]]:
    """Counts images with several frames or pages, with the first of them as examples."""
    several = rows[rows["frames"].fillna(1) > 1]
    return len(several), [f"{row.origin}: {row.frames} frames" for row in several.head(3).itertuples()]


def _shared_subjects(rows: pd.DataFrame) -> tuple[int, list[str]]:
    """Counts subjects in more than one split, with the first of them and one row per split as examples."""
    known = rows[rows["subject"].notna()]
    splits = known.groupby("subject", sort=False)["split"].nunique()
    examples = []
    for subject in splits.index[splits > 1][:3]:
        same = known[known["subject"] == subject].drop_duplicates("split")
        origins = ", ".join(f"{row.origin} ({row.split})" for row in same.itertuples())
        examples.append(f"{quoted(subject)}: {origins}")
    return int((splits > 1).sum()), examples


def _images_with_two_targets(rows: pd.DataFrame) -> tuple[int, list[str]]:
    """Counts pictures with more than one target, with the rows of the first of them as examples."""
    known = rows[rows["content"].notna() & np.isfinite(rows["target"])]
    targets = known.groupby("content", sort=False)["target"].nunique()
    examples = []
    for content in targets.index[targets > 1][:3]:
        same = known[known["content"] == content].drop_duplicates("target")
        examples.append(" = ".join(f"{row.origin} (target {row.target:g})" for row in same.head(3).itertuples()))
    return int((targets > 1).sum()), examples


def _shared_images(rows: pd.DataFrame) -> tuple[int, list[str]]:
    """Counts pictures in more than one split, with the rows of the first of them as examples."""
    known = rows[rows["content"].notna()]
    repeated = known[known.duplicated("content", keep=False)]
    splits = repeated.groupby("content", sort=False)["split"].nunique()
    shared = splits.index[splits > 1]
    examples = []
    for content in shared[:3]:
        same = repeated[repeated["content"] == content].drop_duplicates("split")
        examples.append(" = ".join(f"{row.origin} ({row.split})" for row in same.itertuples()))
    return len(shared), examples
