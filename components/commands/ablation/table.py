"""The ablation's results file: Markdown for people, JSON for whoever plots it."""

from pathlib import Path
from typing import Any

import numpy as np

from components.commands.ablation.studies import Study
from components.commands.machine import facts_line, machine_facts
from components.settings import Settings
from components.shared.io.atomic import write_json, write_text
from components.shared.scoring.shots import GROUPS


def write_tables(out: Path, settings: Settings, study: Study, result: dict[str, Any]) -> None:
    """Writes OUT.json and OUT.md."""
    result = {**result, "machine": machine_facts(), "experiment": settings.experiment}
    write_json(out.with_suffix(".json"), result)
    write_text(out.with_suffix(".md"), markdown(settings, study, result))


def markdown(settings: Settings, study: Study, result: dict[str, Any]) -> str:
    """The tables, and what they say where the arm that counts loses."""
    unit, seeds = settings.task.unit, result["seeds"]
    where = result["machine"]
    models = result["models"]
    sizes = {group: models["warm"]["groups"][group]["n"] for group in GROUPS}
    lines = [
        f"# {study.title}: {settings.experiment}",
        "",
        f"{study.text}; seeds {', '.join(map(str, seeds))}; {result['split']} split of "
        f"{sizes['all']} images ({', '.join(f'{g} {sizes[g]}' for g in GROUPS[1:])}). MAE in {unit}, mean over seeds "
        "(each seed in brackets). GM floors errors at half the label's step "
        f"({models['warm']['gm_floor']:g}). An unparseable answer counts as the worst possible error.",
        "",
        "| | MAE all | many | medium | few | GM all | sd ratio | unparseable | steps | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|",
        _line("warm start", [models["warm"]], None, None),
    ]
    for arm, way in study.arms.items():
        names = [f"{arm}-{seed}" for seed in seeds]
        steps = [result["steps"][name] for name in names]
        seconds = [result["seconds"][name] for name in names]
        lines.append(_line(way.title, [models[name] for name in names], steps, seconds))
    lines += [
        "",
        "Paired differences of absolute error, image by image and seed by seed; below 0 is better for the first. "
        "Intervals: 95 %, bootstrap over seeds and images.",
        "",
        "| | " + " | ".join(GROUPS) + " |",
        "|---|" + "---|" * len(GROUPS),
    ]
    for pair, groups in result["paired"].items():
        lines.append(f"| {_pair(study, pair)} | " + " | ".join(_difference(groups[g]) for g in GROUPS) + " |")
    lines += ["", _losses(study, result), ""]
    lines.append(facts_line(where))
    return "\n".join(lines) + "\n"


def _line(title: str, models: list[dict[str, Any]], steps: list[int] | None, seconds: list[float] | None) -> str:
    def cell(values: list[float | None], digits: int = 2) -> str:
        known = [v for v in values if v is not None]
        if not known:
            return "empty"
        each = f" ({' '.join(f'{v:.{digits}f}' for v in known)})" if len(known) > 1 else ""
        return f"{np.mean(known):.{digits}f}{each}"

    cells = [cell([m["groups"][group]["mae"] for m in models]) for group in GROUPS]
    cells.append(cell([m["groups"]["all"]["gm"] for m in models]))
    cells += [cell([m["sd_ratio"] for m in models]), cell([m["unparseable"] for m in models], 4)]
    cells.append(f"{np.mean(steps):.0f}" if steps else "")
    cells.append(f"{np.mean(seconds):.0f}" if seconds else "")
    return f"| {title} | " + " | ".join(cells) + " |"


def _pair(study: Study, pair: str) -> str:
    return " − ".join(study.name(arm) for arm in pair.split(" - "))


def _difference(found: dict[str, Any]) -> str:
    if found["difference"] is None:
        return "empty"
    low, high = found["ci"]
    return f"{found['difference']:+.2f} [{low:+.2f}, {high:+.2f}]"


def _losses(study: Study, result: dict[str, Any]) -> str:
    ours = study.arms[study.ours].title
    lost = [
        f"{_pair(study, pair)} on {group} ({groups[group]['difference']:+.2f})"
        for pair, groups in result["paired"].items()
        if pair.startswith(f"{study.ours} - ")
        for group in GROUPS
        if groups[group]["difference"] is not None and groups[group]["difference"] > 0
    ]
    if lost:
        return f"Where {ours} is worse: {'; '.join(lost)}."
    return f"{ours[0].upper()}{ours[1:]} is worse nowhere in this table."
