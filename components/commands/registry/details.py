"""Prints `python -m components registry show --version N`: a version's ancestry and its promotion decision."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from components.register.ancestry import ANCESTOR, DATA
from components.register.decisions import DECISIONS, decided
from components.register.registry import PROMOTED, REASON, ROLLED_BACK
from components.shared.scoring.shots import GROUPS
from components.shared.tracking.flatten import flatten
from components.shared.tracking.hashes import Content
from components.shared.tracking.tags import PIPELINE_RUN
from components.steps import STEPS

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion


def details(console: Console, version: "ModelVersion", aliases: Sequence[str]) -> None:
    """Prints the details from the version's tags only, because its runs may have been deleted."""
    tags = version.tags
    console.print(Text(f"{version.name} version {version.version}  {' '.join(aliases)}", style="bold"))
    _rows(console, "Decision", decision(tags))
    _rows(console, "Sources", sources(tags))
    steps = {name: json.loads(tags[f"{ANCESTOR}{name}"]) for name in STEPS if f"{ANCESTOR}{name}" in tags}
    if steps:
        _steps(console, steps)
    settings = json.loads(tags.get("concord.settings", "{}"))
    sections = {section for step in STEPS.values() for section in step.sections}
    _rows(console, "Params", ((name, _one_line(settings[name])) for name in settings if name in sections))


def decision(tags: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yields who promoted or rolled back the version, when, why, and the figures behind the decision."""
    if f"{PROMOTED}at" in tags:
        previous = tags.get(f"{PROMOTED}previous")
        replaced = f", replacing version {previous}" if previous else ""
        yield "promoted", f"by {tags[f'{PROMOTED}by']}, {tags[f'{PROMOTED}at']}{replaced}: {tags[f'{PROMOTED}why']}"
    if f"{ROLLED_BACK}at" in tags:
        yield (
            "rolled back",
            f"by {tags[f'{ROLLED_BACK}by']}, {tags[f'{ROLLED_BACK}at']}, to version {tags[f'{ROLLED_BACK}to']}: "
            f"{tags[f'{ROLLED_BACK}why']}",
        )
    outcome: dict[str, Any] = json.loads(tags.get("concord.decision", "{}"))
    if outcome:
        yield "the rule is", f"{'met' if outcome['promoted'] else 'not met'}: {outcome['reason']}"
    elif f"{PROMOTED}at" not in tags:
        yield "not promoted", tags.get(REASON, "no decision")
    if few := outcome.get("few"):
        low, high = few["ci"] or (None, None)
        interval = f" (95 % interval {low:.3g} to {high:.3g})" if low is not None else ""
        yield "few-shot", f"MAE {few['difference']:+.3g} against the baseline{interval}"
    if met := outcome.get("met"):
        yield "conditions", ", ".join(f"{name} {'met' if is_met else 'not met'}" for name, is_met in met.items())
    if DECISIONS in tags:
        yield "test set", decided(tags[DECISIONS])
    if "concord.metrics" in tags:
        figures = json.loads(tags["concord.metrics"])["groups"]
        for group in GROUPS:
            if figures[group]["n"]:
                low, high = figures[group]["mae_ci"]
                mae = f"{figures[group]['mae']:.2f} ({low:.2f} to {high:.2f}), {figures[group]['n']} images"
                yield f"MAE {group}", mae
    if "concord.verified" in tags:
        equal = tags["concord.verified"] == "true"
        yield "verified", f"predictions of the registered model {'equal' if equal else 'differ from'} those of evaluate"


def sources(tags: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yields the hashes of data and weights, the commit, and the parent runs."""
    for title, key in (
        ("raw data", DATA),
        ("weights", f"concord.in.{tags.get('concord.served', 'grpo').partition('.')[0]}"),
        ("answers", "concord.served"),
        ("commit", "concord.git.commit"),
        ("Kubeflow run", PIPELINE_RUN),
        ("MLflow run", "concord.run.experiment"),
    ):
        if key in tags:
            yield title, tags[key]


def _steps(console: Console, steps: Mapping[str, Mapping[str, Any]]) -> None:
    runs = _table("Steps")
    for head in ("step", "MLflow run", "commit", "code", "cached outputs from"):
        runs.add_column(head, no_wrap=True)
    contents = _table("Inputs and outputs")
    for head in ("step", "", "port", "DVC hash"):
        contents.add_column(head, no_wrap=True)
    for head in ("bytes", "files"):
        contents.add_column(head, no_wrap=True, justify="right")
    for name, step in steps.items():
        commit = step["commit"][:8] + (" + changes" if step["dirty"] else "")
        runs.add_row(name, step["run"], commit, step["code"], step["reused"])
        for direction in ("in", "out"):
            for port, fields in step[direction].items():
                content = Content(**fields)
                files = "" if content.nfiles is None else str(content.nfiles)
                contents.add_row(name, direction, port, content.md5, f"{content.size:,}", files)
    console.print(runs)
    console.print(contents)


def _table(title: str, header: bool = True) -> Table:
    return Table(
        title=f"\n{title}",
        title_justify="left",
        title_style="bold",
        show_header=header,
        box=None,
        padding=(0, 2, 0, 0),
    )


def _rows(console: Console, title: str, pairs: Iterator[tuple[str, str]]) -> None:
    table = _table(title, header=False)
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    for name, text in pairs:
        table.add_row(name, Text(text))
    if table.row_count:
        console.print(table)


def _one_line(content: Mapping[str, Any]) -> str:
    leaves = flatten(content).items()
    return ", ".join(f"{name} {value if isinstance(value, str) else json.dumps(value)}" for name, value in leaves)
