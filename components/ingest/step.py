"""Ingest: the raw input, split and packed into Parquet shards with the image bytes inside."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

from components.console import console
from components.ingest.balance import balance
from components.ingest.quarantine import NAME, Quarantine
from components.ingest.sources.benchmark import read_bone_age, read_faces, read_movies
from components.ingest.sources.folder import read_folder
from components.ingest.sources.gauges import read_gauges
from components.ingest.sources.release import read_release
from components.settings import Ingest, Settings
from components.shared.io.atomic import new_folder, write_json, write_text
from components.shared.io.progress import counted
from components.shared.rows.histogram import histogram_csv, label_histogram, share_metrics
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
    """Writes train-, val- and test- shards to `out`, with metrics.json and histogram.csv (rows per label and split).

    Where ingest.max_quarantined is above 0, quarantine.csv beside them holds the rows that cannot be used and why.

    Args:
        data: folder that holds the table named by ingest.csv.

    Raises:
        ConcordError: the raw input has more faults than may be quarantined; all that can be seen without opening images
            (with a quarantine: all) are told at once.
    """
    del track  # no curves
    with new_folder(out) as folder:
        quarantine = Quarantine.of(settings)
        rows = SOURCES[settings.ingest.source](data, settings, quarantine=quarantine)
        targets = _write_shards(rows, folder, settings.ingest)
        kept = sum(map(len, targets.values()))
        quarantine.account(kept)
        histogram = label_histogram(targets, settings.task)
        write_text(folder / "histogram.csv", histogram_csv(histogram, settings.task))
        metrics = share_metrics(histogram)
        far = balance(histogram, settings.ingest.max_per_label) if settings.ingest.split == "subject" else {}
        metrics |= {"balance": far} if far else {}
        if quarantine.open:
            write_text(folder / NAME, quarantine.table())
            metrics |= {"read": quarantine.read, "kept": kept, "quarantined": quarantine.rows}
        write_json(metrics_file(folder), metrics)
    console.print(", ".join(f"{split} {len(targets[split])}" for split in SPLITS) + " rows")
    for split, rows_of in far.items():
        told = "{met} of the {wanted} rows that the balanced rule asks for, and {over} over".format(**rows_of)
        console.print(f"by subject, {split} has {told}")
    if quarantine.rows:
        reasons = ", ".join(f"{kind}: {count}" for kind, count in quarantine.reasons().items())
        told = f"{quarantine.rows} of {quarantine.read} rows quarantined ({reasons}): {out / NAME}"
        console.print(told, markup=False, soft_wrap=True)


def _write_shards(rows: Iterator[tuple[str, Row]], folder: Path, settings: Ingest) -> Mapping[str, list[float]]:
    """Writes every row to its split's shards and gives the targets of each split."""
    targets: dict[str, list[float]] = {split: [] for split in SPLITS}
    with ExitStack() as stack:
        known = settings.subject_column is not None
        writers = {split: stack.enter_context(ShardWriter(folder, split, settings.shard_mb, known)) for split in SPLITS}
        for split, row in counted(rows, "packing rows"):
            writers[split].add(row)
            targets[split].append(row.target)
    return targets
