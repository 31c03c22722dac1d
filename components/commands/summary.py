"""`python -m components summary`: prints the metrics table, the promotion decision and the report path of a run."""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from components.commands.machine import facts_line, machine_facts
from components.errors import ConcordError
from components.evaluate.results import BALANCED, CONSTANT, MODELS
from components.register.message import verdict
from components.settings import load_settings
from components.shared.io.atomic import write_bytes, write_text
from components.shared.io.secrets import masked
from components.shared.reporting.predictions import TEXT
from components.shared.scoring.shots import GROUPS
from components.shared.tracking.connection import absolute_tracking_uri, connect
from components.shared.tracking.libraries import differences, installed, recorded
from components.steps import STEPS

FIGURE = "bins.png"
# Groups of columns and their heads.
HEADS = {
    "mae": [f"MAE\n{group}" for group in GROUPS],
    "skill": ["\nskill"],
    "gm": [f"GM\n{group}" for group in GROUPS],
    "shape": ["sd\nratio", "unpar-\nseable"],
}

SPACED = ("gm",)  # those with a gap before them


def main(arguments: Sequence[str]) -> None:
    """Prints the summary of the outputs in artifacts/.

    Raises:
        ConcordError: nothing has been evaluated yet.
    """
    parser = argparse.ArgumentParser(prog="python -m components summary", description="Prints the results of a run.")
    for name, default in (
        ("params", "params.yaml"),
        ("evaluate", "artifacts/evaluate"),
        ("register", "artifacts/register"),
        ("report", "reports/evaluate"),
    ):
        parser.add_argument(f"--{name}", type=Path, default=Path(default), help="(default: %(default)s)")
    parser.add_argument("--write", type=Path, help="also write it to this Markdown file, with its figure as a PNG")
    options = parser.parse_args(arguments)
    settings = load_settings(options.params)
    figures = _read(options.evaluate / "metrics.json")
    titles = _read(options.evaluate / "titles.json")
    chosen = _read(options.evaluate / "served.json")
    if figures is None or titles is None or chosen is None:
        raise ConcordError(
            f"{options.evaluate}: metrics.json, titles.json or served.json is missing; nothing has been evaluated "
            "yet. Run: make run"
        )
    registration = _read(options.register / "registration.json")
    served = f"{chosen['model']}.{chosen['way']}"
    rows = [
        (_titled(titles[f"{model}.{way}"], served == f"{model}.{way}"), figures[model][way])
        for model in MODELS
        for way in (TEXT, BALANCED)
        if way in figures[model]
    ]
    rows += [(titles[f"{CONSTANT}.{way}"], known) for way, known in figures.get(CONSTANT, {}).items()]
    if registration and registration["champion_before"]:
        champion = registration["champion_before"]
        rows.append((f"champion v{champion['version']}", champion["metrics"]))
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=120)
    show(console, rows, settings.task.unit)
    console.print(Text(verdict(registration)), soft_wrap=True)
    for remark in remarks(options.evaluate.parent, registration):
        console.print(Text(remark), style="yellow", soft_wrap=True)
    if options.write:
        write_text(options.write, markdown(settings.experiment, rows, settings.task.unit, verdict(registration)))
        figure = options.report / FIGURE
        if figure.exists():
            write_bytes(options.write.with_suffix(".png"), figure.read_bytes())
    console.print(Text(f"Report: {options.report / 'report.html'}"), soft_wrap=True)


def _titled(title: str, served: bool) -> str:
    """`✓ CCC-GRPO, median, balance 0.4`."""
    return f"✓ {title}" if served else title


def _two_lines(title: str) -> str:
    """The model, and below it how it is read, in few letters: nine columns with intervals stand beside it."""
    model, comma, way = title.partition(", ")
    return f"{model}\n{way.rpartition(', ')[2]}" if comma else title


def show(console: Console, rows: Sequence[tuple[str, dict[str, Any] | None]], unit: str) -> None:
    """Prints one row per model; below each value its interval.

    Args:
        console: if it is narrow, the table is split into two.
        rows: title, and the result of `components.shared.reporting.metrics.evaluate` or None if it is not known.
        unit: unit of the task.
    """
    known = next(figures for _, figures in rows if figures)
    counts = {group: known["groups"][group]["n"] for group in GROUPS}
    table = _table(rows, tuple(HEADS))
    width = Measurement.get(console, console.options.update(width=1000), table).maximum
    for part in [table] if width <= console.width else [_table(rows, ("mae", "skill")), _table(rows, ("gm", "shape"))]:
        console.print(part)
    sizes = ", ".join(f"{counts[group]} {group}" for group in GROUPS[1:])
    prefix = f"Errors in {unit}; " if unit else ""
    console.print(
        Text(
            f"{prefix}{counts['all']} test images ({sizes}). Below each value: its 95 % interval. GM: errors floored "
            f"at {known['gm_floor']:g}. Unparseable answers count as the end of the range farther from the target. "
            "Skill: 1 - MAE / MAE of the best constant on validation. The report has more intervals. ✓: served."
        ),
        style="dim",
    )


def markdown(experiment: str, rows: Sequence[tuple[str, dict[str, Any] | None]], unit: str, decision: str) -> str:
    """Formats the table and the promotion decision for a results file."""
    heads = [head.replace("-\n", "").replace("\n", " ").strip() for part in HEADS.values() for head in part]
    known = next(figures for _, figures in rows if figures)
    lines = [f"# Run: {experiment}", "", f"| | {' | '.join(heads)} |", "|---|" + "---|" * len(heads)]
    for name, figures in rows:
        cells = [cell for part in HEADS for cell in _cells(figures, part)]
        lines.append(f"| {name} | " + " | ".join(_flat(cell) for cell in cells) + " |")
    sizes = ", ".join(f"{group} {known['groups'][group]['n']}" for group in GROUPS)
    prefix = f"Errors in {unit}. " if unit else ""
    over = "subjects" if "subjects" in known else "images"
    lines += ["", f"{prefix}Test images: {sizes}. In brackets: 95 % bootstrap interval over {over}. {decision}"]
    return "\n".join([*lines, "", facts_line(machine_facts())]) + "\n"


def _flat(cell: Text) -> str:
    value, _, bounds = cell.plain.partition("\n")
    return f"{value} [{bounds}]" if bounds else value


def _table(rows: Sequence[tuple[str, dict[str, Any] | None]], parts: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    table.add_column("", no_wrap=True)  # the model, and below it how it is read
    for part in parts:
        if part in SPACED:
            table.add_column("", width=1)  # a gap
        for head in HEADS[part]:
            table.add_column(head, justify="right", no_wrap=True)
    for name, figures in rows:
        cells = [cell for part in parts for cell in _spaced(part, _cells(figures, part))]
        table.add_row(_two_lines(name), *cells)
    return table


def _spaced(part: str, cells: list[Text]) -> list[Text]:
    """The cells, with that of the gap before them."""
    return [Text(), *cells] if part in SPACED else cells


def _cells(figures: dict[str, Any] | None, part: str) -> list[Text]:
    if figures is None:
        return [Text("–")] * len(HEADS[part])
    if part == "skill":
        return [_cell(figures.get("skill"), None)]  # earlier champions have none
    if part == "shape":
        bounds = [100 * bound for bound in figures["unparseable_ci"] or []]
        return [_cell(figures["sd_ratio"], None), _cell(100 * figures["unparseable"], bounds, " %")]
    return [_cell(figures["groups"][g][part], figures["groups"][g][f"{part}_ci"]) for g in GROUPS]


def _cell(value: float | None, ci: Sequence[float] | None, unit: str = "") -> Text:
    """`14.9` above `14.2–15.6`; three digits each, so that nine columns with intervals fit the screen."""
    if value is None:
        return Text("–")
    cell = Text(f"{_short(value)}{unit}")
    return cell.append(f"\n{_short(ci[0])}–{_short(ci[1])}", style="dim") if ci else cell


def _short(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def remarks(artifacts: Path, registration: dict[str, Any] | None) -> Iterator[str]:
    """Where the outputs are not what this environment would give, or the version is in another registry.

    Args:
        artifacts: holds the folder of each step.
    """
    now, steps = installed(), defaultdict(list)
    for name in STEPS:
        if (before := recorded(artifacts / name)) and (text := differences(before, now)):
            steps[text].append(name)
    for text, names in steps.items():
        yield f"{', '.join(names)}: computed with other libraries: {text}. `dvc repro -f` computes them again."
    if registration and (reason := _not_here(registration)):
        yield f"{registration['name']} version {registration['version']}: {reason}"


def _not_here(registration: dict[str, Any]) -> str | None:
    """Why the registry here cannot serve the version; None if it has it, from the run that registered it."""
    store = absolute_tracking_uri()
    missing = f"not in the registry at {masked(store)} but in another one. `python -m components register`"
    if store.startswith("sqlite:///") and not Path(store.removeprefix("sqlite:///")).exists():
        return f"{missing} registers it here."
    try:
        client = connect()
    except ConcordError as error:
        return f"whether the registry has it is unknown: {error}"
    from mlflow.exceptions import MlflowException

    try:
        client.get_model_version(registration["name"], str(registration["version"]))
        client.get_run(registration["runs"]["register"])
    except MlflowException as error:
        return f"{missing} registers it here." if error.error_code == "RESOURCE_DOES_NOT_EXIST" else str(error)
    return None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return content
