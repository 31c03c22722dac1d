"""`python -m components summary`: what a run came to, on the screen: the table, the registry's verdict, the report."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from components.commands.machine import facts_line, machine_facts
from components.errors import ConcordError
from components.evaluate.results import MODELS
from components.settings import load_settings
from components.shared.io.atomic import write_bytes, write_text
from components.shared.scoring.shots import GROUPS

FIGURE = "bins.png"


def main(words: Sequence[str]) -> None:
    """Prints the summary of what lies in artifacts/.

    Raises:
        ConcordError: there is nothing to sum up yet.
    """
    parser = argparse.ArgumentParser(prog="python -m components summary", description="What the last run came to.")
    for name, default in (
        ("params", "params.yaml"),
        ("evaluate", "artifacts/evaluate"),
        ("register", "artifacts/register"),
        ("report", "reports/evaluate"),
    ):
        parser.add_argument(f"--{name}", type=Path, default=Path(default), help="(default: %(default)s)")
    parser.add_argument("--write", type=Path, help="also write it to this Markdown file, its figure beside")
    given = parser.parse_args(words)
    settings = load_settings(given.params)
    figures = _read(given.evaluate / "metrics.json")
    titles = _read(given.evaluate / "titles.json")
    if figures is None or titles is None:
        raise ConcordError(
            f"{given.evaluate}: no metrics.json and titles.json there, nothing has been evaluated yet. Run: make run"
        )
    registration = _read(given.register / "registration.json")
    rows = [(titles[name], figures[name]) for name in MODELS]
    if registration and registration["champion_before"]:
        champion = registration["champion_before"]
        rows.append((f"champion v{champion['version']}", champion["metrics"]))
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=120)
    show(console, rows, settings.task.unit)
    console.print(Text(verdict(registration)), soft_wrap=True)
    if given.write:
        write_text(given.write, markdown(settings.experiment, rows, settings.task.unit, verdict(registration)))
        figure = given.report / FIGURE
        if figure.exists():
            write_bytes(given.write.with_suffix(".png"), figure.read_bytes())
    console.print(Text(f"Report: {given.report / 'report.html'}"), soft_wrap=True)


def show(console: Console, rows: Sequence[tuple[str, dict[str, Any] | None]], unit: str) -> None:
    """Prints a row a model; below each figure its interval.

    Args:
        console: on a narrow one the table comes in two.
        rows: title and what `components.shared.reporting.metrics.evaluate` gave, None where it is not known.
        unit: the task's.
    """
    known = next(figures for _, figures in rows if figures)
    counts = {group: known["groups"][group]["n"] for group in GROUPS}
    whole = _table(rows, ("mae", "gm", "shape"))
    wanted = Measurement.get(console, console.options.update(width=1000), whole).maximum
    for table in [whole] if wanted <= console.width else [_table(rows, ("mae",)), _table(rows, ("gm", "shape"))]:
        console.print(table)
    where = ", ".join(f"{counts[group]} {group}" for group in GROUPS[1:])
    of = f"In {unit}; " if unit else ""
    console.print(
        Text(
            f"{of}{counts['all']} test images ({where}). Below each figure its 95 % interval. GM: errors floored at "
            f"{known['gm_floor']:g}. Unparseable answers count as the farther end of the range."
        ),
        style="dim",
    )


def markdown(experiment: str, rows: Sequence[tuple[str, dict[str, Any] | None]], unit: str, said: str) -> str:
    """The same table for a results file."""
    heads = [f"{part} {group}" for part in ("MAE", "GM") for group in GROUPS] + ["sd ratio", "unparseable"]
    known = next(figures for _, figures in rows if figures)
    lines = [f"# Run: {experiment}", "", f"| | {' | '.join(heads)} |", "|---|" + "---|" * len(heads)]
    for name, figures in rows:
        cells = [cell for part in ("mae", "gm", "shape") for cell in _cells(figures, part)]
        lines.append(f"| {name} | " + " | ".join(_flat(cell) for cell in cells) + " |")
    sizes = ", ".join(f"{group} {known['groups'][group]['n']}" for group in GROUPS)
    of = f"In {unit}. " if unit else ""
    lines += ["", f"{of}Test images: {sizes}. In brackets: 95 % bootstrap interval over images. {said}"]
    return "\n".join([*lines, "", facts_line(machine_facts())]) + "\n"


def _flat(cell: Text) -> str:
    value, _, bounds = cell.plain.partition("\n")
    return f"{value} [{bounds}]" if bounds else value


def _table(rows: Sequence[tuple[str, dict[str, Any] | None]], parts: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    table.add_column("", no_wrap=True)
    for part in parts:
        table.add_column("", width=1)  # sets MAE, GM and the rest apart
        for head in ("sd\nratio", "unpar-\nseable") if part == "shape" else (f"{part.upper()}\n{g}" for g in GROUPS):
            table.add_column(head, justify="right", no_wrap=True)
    for name, figures in rows:
        cells = [cell for part in parts for cell in (Text(), *_cells(figures, part))]
        table.add_row(name, *cells)
    return table


def _cells(figures: dict[str, Any] | None, part: str) -> list[Text]:
    if figures is None:
        return [Text("–")] * (2 if part == "shape" else len(GROUPS))
    if part == "shape":
        bounds = [100 * bound for bound in figures["unparseable_ci"] or []]
        return [_cell(figures["sd_ratio"], figures["sd_ratio_ci"]), _cell(100 * figures["unparseable"], bounds, " %")]
    return [_cell(figures["groups"][g][part], figures["groups"][g][f"{part}_ci"]) for g in GROUPS]


def _cell(value: float | None, ci: Sequence[float] | None, unit: str = "") -> Text:
    """`14.9` above `14.2–15.6`: three digits each, so that nine columns hold an interval."""
    if value is None:
        return Text("–")
    cell = Text(f"{_short(value)}{unit}")
    return cell.append(f"\n{_short(ci[0])}–{_short(ci[1])}", style="dim") if ci else cell


def _short(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def verdict(registration: dict[str, Any] | None) -> str:
    """One sentence: what was registered or refused, and why."""
    if registration is None:
        return "Nothing is registered yet."
    who = f"{registration['name']} version {registration['version']}"
    state = "is now champion" if registration["promoted"] else "is registered as challenger, not promoted"
    return f"{who} {state}: {registration['reason']}"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return content
