"""Generates the raw input of the default experiment, a table of gauge scenes, from a seed."""

from dataclasses import dataclass
from pathlib import Path

from components.ingest.sources.gauges import draw_scenes, label_counts, write_scenes
from components.shared.io.atomic import new_folder


@dataclass(frozen=True)
class GaugeTable:
    """The parameters of the table.

    Attributes:
        seed: random seed; it determines every pixel.
        head: training scenes of the most common reading.
        operating_point: the most common reading, in percent.
        decay: percent of the scale over which the number of training scenes falls by a factor of e.
        floor: training scenes of the rarest reading.
        val, test: scenes per reading.
    """

    seed: int = 20260522
    head: int = 300
    operating_point: int = 35
    decay: float = 14.0
    floor: int = 5
    val: int = 20
    test: int = 20


def make(table: GaugeTable, out: Path) -> None:
    """Writes `out`/scenes.csv; the same table gives the same bytes on every machine."""
    counts = label_counts(table.head, table.operating_point, table.decay, table.floor)
    scenes = draw_scenes(table.seed, counts, table.val, table.test)
    with new_folder(out) as folder:
        (folder / "scenes.csv").write_text(write_scenes(scenes), encoding="utf-8")
    print(f"{out / 'scenes.csv'}: {len(scenes)} scenes, {int(counts.sum())} of them for training")
