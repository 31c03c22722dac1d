"""Ingest: the raw input, split and packed into Parquet shards with the image bytes inside."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from components.ingest.distribution import histogram_csv, label_histogram, share_metrics
from components.settings import Settings
from components.shared.data.atomic import new_folder, write_json, write_text
from components.shared.data.benchmark import read_bone_age, read_faces, read_movies
from components.shared.data.folder import read_folder
from components.shared.data.gauges import read_gauges
from components.shared.data.progress import counted
from components.shared.data.release import read_release
from components.shared.data.rows import SPLITS, Row, ShardWriter
from components.shared.tracking.runs import StepRun
from components.steps import metrics_file

console = Console(stderr=True, highlight=False)
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

    Args:
        data: folder that holds the table named by ingest.csv.

    Raises:
        ConcordError: the raw input has faults; all that can be seen without opening images are told at once.
    """
    del track  # no curves
    with new_folder(out) as folder:
        targets = _write_shards(SOURCES[settings.ingest.source](data, settings), folder, settings.ingest.shard_mb)
        histogram = label_histogram(targets, settings.task)
        write_text(folder / "histogram.csv", histogram_csv(histogram, settings.task))
        write_json(metrics_file(folder), share_metrics(histogram))
    console.print(", ".join(f"{split} {len(targets[split])}" for split in SPLITS) + " rows")


def _write_shards(rows: Iterator[tuple[str, Row]], folder: Path, shard_mb: int) -> Mapping[str, list[float]]:
    """Writes every row to its split's shards and gives the targets of each split."""
    targets: dict[str, list[float]] = {split: [] for split in SPLITS}
    with ExitStack() as stack:
        writers = {split: stack.enter_context(ShardWriter(folder, split, shard_mb)) for split in SPLITS}
        for split, row in counted(rows, "packing rows"):
            writers[split].add(row)
            targets[split].append(row.target)
    return targets
