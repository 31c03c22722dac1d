"""What `python -m components registry show --version N` prints: a version's ancestry, and the decision about it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from components.register.ancestry import ANCESTOR, DATA
from components.register.registry import PROMOTED, REASON, ROLLED_BACK
from components.shared.scoring.shots import GROUPS
from components.shared.tracking.hashes import Content
from components.shared.tracking.step_run import PIPELINE_RUN, flat
from components.steps import STEPS

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion


def details(console: Console, version: "ModelVersion", aliases: Sequence[str]) -> None:
    """Prints it, from the version's tags alone: runs may be gone."""
    tags = version.tags
    console.print(Text(f"{version.name} version {version.version}  {' '.join(aliases)}", style="bold"))
    _rows(console, "Decision", decision(tags))
    _rows(console, "Made from", sources(tags))
    steps = {name: json.loads(tags[f"{ANCESTOR}{name}"]) for name in STEPS if f"{ANCESTOR}{name}" in tags}
    if steps:
        _steps(console, steps)
    settings = json.loads(tags.get("concord.settings", "{}"))
    deciding = {section for step in STEPS.values() for section in step.sections}
    _rows(console, "Params", ((name, _in_line(settings[name])) for name in settings if name in deciding))


def decision(tags: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Who promoted or rolled back, when, why, and the figures that it was decided on."""
    if f"{PROMOTED}at" in tags:
        after = f", after version {tags[f'{PROMOTED}previous']}" if tags.get(f"{PROMOTED}previous") else ""
        yield "promoted", f"by {tags[f'{PROMOTED}by']}, {tags[f'{PROMOTED}at']}{after}: {tags[f'{PROMOTED}why']}"
    if f"{ROLLED_BACK}at" in tags:
        yield (
            "rolled back",
            f"by {tags[f'{ROLLED_BACK}by']}, {tags[f'{ROLLED_BACK}at']}, to version {tags[f'{ROLLED_BACK}to']}: "
            f"{tags[f'{ROLLED_BACK}why']}",
        )
    decided: dict[str, Any] = json.loads(tags.get("concord.decision", "{}"))
    if decided:
        yield "the rule is", f"{'met' if decided['promoted'] else 'not met'}: {decided['reason']}"
    elif f"{PROMOTED}at" not in tags:
        yield "not promoted", tags.get(REASON, "nothing was decided")
    if few := decided.get("few"):
        low, high = few["ci"] or (None, None)
        interval = f" (95 % interval {low:.3g} to {high:.3g})" if low is not None else ""
        yield "few-shot", f"MAE {few['difference']:+.3g} against the bar{interval}"
    if met := decided.get("met"):
        yield "conditions", ", ".join(f"{name} {'met' if held else 'not met'}" for name, held in met.items())
    if "concord.metrics" in tags:
        figures = json.loads(tags["concord.metrics"])["groups"]
        for group in GROUPS:
            if figures[group]["n"]:
                low, high = figures[group]["mae_ci"]
                mae = f"{figures[group]['mae']:.2f} ({low:.2f} to {high:.2f}), {figures[group]['n']} images"
                yield f"MAE {group}", mae
    if "concord.verified" in tags:
        held = tags["concord.verified"] == "true"
        yield "verified", f"the registry's model {'answers' if held else 'does not answer'} as evaluated"


def sources(tags: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Data, code, weights, and the runs above the steps."""
    for title, key in (
        ("raw data", DATA),
        ("weights", "concord.in.grpo"),
        ("commit", "concord.git.commit"),
        ("Kubeflow run", PIPELINE_RUN),
        ("MLflow run", "concord.run.experiment"),
    ):
        if key in tags:
            yield title, tags[key]


def _steps(console: Console, steps: Mapping[str, Mapping[str, Any]]) -> None:
    runs = _table("Steps")
    for head in ("step", "MLflow run", "commit", "code", "fetched, made before"):
        runs.add_column(head, no_wrap=True)
    contents = _table("What each was given and made")
    for head in ("step", "", "port", "DVC hash"):
        contents.add_column(head, no_wrap=True)
    for head in ("bytes", "files"):
        contents.add_column(head, no_wrap=True, justify="right")
    for name, step in steps.items():
        commit = step["commit"][:8] + (" + changes" if step["dirty"] else "")
        runs.add_row(name, step["run"], commit, step["code"], step["reused"])
        for way in ("in", "out"):
            for port, kept in step[way].items():
                content = Content(**kept)
                files = "" if content.nfiles is None else str(content.nfiles)
                contents.add_row(name, way, port, content.md5, f"{content.size:,}", files)
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


def _in_line(content: Mapping[str, Any]) -> str:
    leaves = flat(content).items()
    return ", ".join(f"{name} {value if isinstance(value, str) else json.dumps(value)}" for name, value in leaves)
