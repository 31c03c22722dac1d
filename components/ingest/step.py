"""The ingest step: reads the raw input, splits it, and writes Parquet shards that contain the images."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

from components.console import console
from components.ingest.balance import balance
from components.ingest.quarantine import QUARANTINE_FILE, Quarantine
from components.ingest.sources.benchmark import read_bone_age, read_faces, read_movies
from components.ingest.sources.folder import read_folder
from components.ingest.sources.gauges import read_gauges
from components.ingest.sources.release import read_release
from components.settings import Ingest, Settings
from components.shared.io.atomic import new_folder, write_json, write_text
from components.shared.io.progress import with_progress
from components.shared.rows.histogram import distribution_metrics, histogram_csv, label_histogram
from components.shared.rows.rows import SPLITS, Row, ShardWriter
from components.shared.tracking.step_run import StepRun
from components.steps import metrics_file

SOURCES = {
    "gauges": read_gauges,
    "folder": read_folder,
    "agedb": read_faces,
    "imdb-wiki": read_faces,
    "bone-age": read_bone_age,
    "imdb-movie": read_movies,
    "release": read_release,
}


def run(settings: Settings, track: StepRun, *, data: Path, out: Path) -> None:
    """Writes the shards of all splits to `out`, with metrics.json and histogram.csv (rows per label and split).

    If ingest.max_quarantined is above 0, also writes quarantine.csv: the rows that cannot be used, with reasons.

    Args:
        data: folder with the raw input.
        out: output folder.

    Raises:
        ConcordError: more rows have errors than may be quarantined. Reports all errors together; without a quarantine,
            images are not opened, so broken ones are not among them.
    """
    del track  # ingest logs no metrics over time
    with new_folder(out) as folder:
        quarantine = Quarantine.from_settings(settings)
        rows = SOURCES[settings.ingest.source](data, settings, quarantine=quarantine)
        targets = _write_shards(rows, folder, settings.ingest)
        kept = sum(map(len, targets.values()))
        quarantine.check_row_counts(kept)
        histogram = label_histogram(targets, settings.task)
        write_text(folder / "histogram.csv", histogram_csv(histogram, settings.task))
        metrics = distribution_metrics(histogram)
        by_subject = settings.ingest.split == "subject"
        split_balance = balance(histogram, settings.ingest.max_per_label) if by_subject else {}
        metrics |= {"balance": split_balance} if split_balance else {}
        if quarantine.enabled:
            write_text(folder / QUARANTINE_FILE, quarantine.to_csv())
            metrics |= {"read": quarantine.read, "kept": kept, "quarantined": quarantine.rows}
        write_json(metrics_file(folder), metrics)
    console.print(", ".join(f"{split} {len(targets[split])}" for split in SPLITS) + " rows")
    for split, counts in split_balance.items():
        message = "{met} of the {wanted} rows that the balanced rule asks for, and {over} more".format(**counts)
        console.print(f"by subject, {split} has {message}")
    if quarantine.rows:
        reasons = ", ".join(f"{kind}: {count}" for kind, count in quarantine.rows_per_reason().items())
        message = f"{quarantine.rows} of {quarantine.read} rows quarantined ({reasons}): {QUARANTINE_FILE} lists them"
        console.print(message, markup=False, soft_wrap=True)


def _write_shards(rows: Iterator[tuple[str, Row]], folder: Path, settings: Ingest) -> Mapping[str, list[float]]:
    """Writes every row to its split's shards; returns split -> targets."""
    targets: dict[str, list[float]] = {split: [] for split in SPLITS}
    with ExitStack() as stack:
        subjects = settings.subject_column is not None
        writers = {
            split: stack.enter_context(ShardWriter(folder, split, settings.shard_mb, subjects)) for split in SPLITS
        }
        for split, row in with_progress(rows, "writing rows"):
            writers[split].add(row)
            targets[split].append(row.target)
    return targets
