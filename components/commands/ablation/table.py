"""Results files of a study: Markdown tables, and JSON with every value."""

from pathlib import Path
from typing import Any

import numpy as np

from components.commands.ablation.studies import WARM_START, Study
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
    """Formats the metrics, the paired differences, and the list of groups in which `study.ours` is worse."""
    unit, seeds = settings.task.unit, result["seeds"]
    models = result["models"]
    sizes = {group: models["warm"]["groups"][group]["n"] for group in GROUPS}
    lines = [
        f"# {study.title}: {settings.experiment}",
        "",
        f"{study.text}; seeds {', '.join(map(str, seeds))}; {result['split']} split of "
        f"{sizes['all']} images ({', '.join(f'{g} {sizes[g]}' for g in GROUPS[1:])}). MAE in {unit}, mean over seeds "
        "(each seed in brackets). GM: geometric mean of the absolute errors, each floored at half the label's step "
        f"({models['warm']['gm_floor']:g}). An unparseable answer counts as the worst possible error.",
        "",
        "| | MAE all | many | medium | few | GM all | sd ratio | unparseable | steps | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|",
        _row(WARM_START, [models["warm"]], None, None),
    ]
    for name, variant in study.variants.items():
        names = [f"{name}-{seed}" for seed in seeds]
        steps = [result["steps"][run] for run in names]
        seconds = [result["seconds"][run] for run in names]
        lines.append(_row(variant.title, [models[run] for run in names], steps, seconds))
    lines += [
        "",
        "Paired differences of the absolute errors on the same images and seeds; below 0, the first model is better. "
        "In brackets: 95 % bootstrap interval over seeds and images.",
        "",
        "| | " + " | ".join(GROUPS) + " |",
        "|---|" + "---|" * len(GROUPS),
    ]
    for pair in study.pairs:
        groups = result["paired"][" - ".join(pair)]
        lines.append(f"| {_pair(study, pair)} | " + " | ".join(_difference(groups[g]) for g in GROUPS) + " |")
    lines += ["", _losses(study, result), ""]
    lines.append(facts_line(result["machine"]))
    return "\n".join(lines) + "\n"


def _row(title: str, models: list[dict[str, Any]], steps: list[int] | None, seconds: list[float] | None) -> str:
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


def _pair(study: Study, pair: tuple[str, str]) -> str:
    return " − ".join(study.name(variant) for variant in pair)


def _difference(paired: dict[str, Any]) -> str:
    if paired["difference"] is None:
        return "empty"
    low, high = paired["ci"]
    return f"{paired['difference']:+.2f} [{low:+.2f}, {high:+.2f}]"


def _losses(study: Study, result: dict[str, Any]) -> str:
    ours = study.variants[study.ours].title
    worse = []
    for pair in study.pairs:
        groups = result["paired"][" - ".join(pair)]
        worse += [
            f"{_pair(study, pair)} on {group} ({groups[group]['difference']:+.2f})"
            for group in GROUPS
            if pair[0] == study.ours and (groups[group]["difference"] or 0) > 0
        ]
    if worse:
        return f"Where {ours} is worse: {'; '.join(worse)}."
    return f"{ours[0].upper()}{ours[1:]} is not worse in any comparison above."
