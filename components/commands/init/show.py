"""Shows what was found: columns, images, errors, and a histogram of the labels with the shot groups in colour."""

import math
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from components.commands.init.survey import ImageSurvey
from components.ingest.quarantine import TableErrors
from components.settings import Settings
from components.shared.io.text import printable, quoted
from components.shared.rows.histogram import LabelBin
from components.shared.rows.rows import SPLITS
from components.shared.scoring.answers import decimals
from components.shared.scoring.shots import SHOTS

COLOURS = {"many": "green", "medium": "yellow", "few": "red"}
_LINES = 24  # of the histogram, at most
_WIDTH = 50  # of its longest bar
_SHOWN = 5  # errors


def show_settings(console: Console, settings: Settings, rows: int, survey: ImageSurvey) -> None:
    """Prints a table of what was found and chosen."""
    ingest, task = settings.ingest, settings.task
    table = Table(box=box.SIMPLE_HEAD, show_header=False, show_edge=False, padding=(0, 2, 0, 0))
    digits = decimals(task.resolution)
    scale = f"{task.low:.{digits}f} to {task.high:.{digits}f} in steps of {task.resolution:g}"
    folder = f", in {ingest.image_folder}" if ingest.image_folder else ""
    for name, value in (
        ("data", f"{ingest.path}{f', {ingest.csv}' if ingest.csv else ''}: {rows:,} rows"),
        ("images", f"{ingest.image_column}{folder}: {_sizes(survey)}"),
        ("pattern", ingest.pattern or ""),
        ("target", f"{ingest.target_column}: {scale} {task.unit}".rstrip()),
        ("question", task.question),
        ("split", _split(settings)),
        ("subject", ingest.subject_column or ""),
        ("bins", f"{task.bin_width:g} wide; many: over {task.many} training rows, few: under {task.few}"),
        ("model", f"{settings.model.name}{f' at {settings.model.revision[:12]}' if settings.model.revision else ''}"),
    ):
        if value:
            table.add_row(Text(name, style="bold"), Text(printable(value)))
    console.print(table)


def _sizes(survey: ImageSurvey) -> str:
    if not survey.sizes:
        return "none could be opened"
    modes = "/".join(sorted(set(survey.modes)))
    widths, heights = ([size[k] for size in survey.sizes] for k in (0, 1))
    if len(set(survey.sizes)) == 1:
        return f"{widths[0]} x {heights[0]} pixels, {modes}"
    return (
        f"{min(widths)} to {max(widths)} pixels wide, {min(heights)} to {max(heights)} high, {modes} "
        f"({len(survey.sizes)} of them opened)"
    )


def _split(settings: Settings) -> str:
    ingest = settings.ingest
    return {
        "given": f"as in {ingest.split_column}",
        "given-test": f"test as in {ingest.split_column}; up to {ingest.max_per_label} rows of a label for val",
        "balanced": f"up to {ingest.max_per_label} rows of a label for val, as many for test, the rest for train",
        "subject": f"by {ingest.subject_column}; about {ingest.max_per_label} rows of a label for val and test",
    }[ingest.split]


def show_histogram(console: Console, histogram: Sequence[LabelBin], settings: Settings) -> None:
    """Prints a bar for each label bin, or for several together, with the training rows of each shot group in colour."""
    digits = decimals(settings.task.resolution)
    size = -(-len(histogram) // _LINES)
    groups = [histogram[k : k + size] for k in range(0, len(histogram), size)]
    longest = max(sum(bin.rows["train"] for bin in group) for group in groups)
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
    table.add_column(justify="right")
    table.add_column(justify="right")
    for group in groups:
        low, high = group[0].label, group[-1].label
        bar = Text()
        for shot in SHOTS:
            rows = sum(bin.rows["train"] for bin in group if bin.shot == shot)
            bar.append("█" * max(round(rows / longest * _WIDTH), int(rows > 0)), style=COLOURS[shot])
        label = f"{low:.{digits}f}" + (f"–{high:.{digits}f}" if high > low else "")
        table.add_row(label, f"{sum(bin.rows['train'] for bin in group):,}", bar)
    console.print(Text(f"training rows by {settings.ingest.target_column}", style="bold"))
    console.print(table)
    legend = Text()
    for shot in SHOTS:
        bins = [bin for bin in histogram if bin.shot == shot]
        counts = " / ".join(f"{sum(bin.rows[split] for bin in bins):,}" for split in SPLITS)
        legend.append(f"█ {shot}", style=COLOURS[shot]).append(f" {counts}   ")
    console.print(legend.append("rows in train / val / test", style="dim"))


def show_errors(console: Console, errors: Sequence[TableErrors], rows: int) -> None:
    """Prints the first errors with their rows and remedies, and how many rows have one."""
    bad = sum(len(table.lines) for table in errors)
    if not bad:
        return
    console.print(f"[yellow]warning[/] {bad:,} of {rows:,} rows have an error:")
    everything = [(table, error) for table in errors for error in table.errors]
    for table, error in everything[:_SHOWN]:
        value = f" {quoted(error.value)}" if error.value is not None else ""
        place = f"{table.name}:{error.line}{f': {error.column}' if error.column else ''}"
        console.print(Text(f"  {place}: {error.kind}{value}; {error.remedy}"), soft_wrap=True)
    if len(everything) > _SHOWN:
        console.print(f"  and {len(everything) - _SHOWN:,} more")
    share = math.ceil(bad / rows * 1000) / 1000
    console.print(
        f"Correct them. Or set ingest.max_quarantined (now 0) to at least {share:g}: ingest then sets aside rows that "
        "it cannot use.",
        markup=False,
    )
