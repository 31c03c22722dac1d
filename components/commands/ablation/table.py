"""Results files of a study: Markdown tables, and JSON with every seed's figures."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from components.commands.ablation.studies import READINGS, WARM, Comparison, Study
from components.commands.machine import facts_line, machine_facts
from components.settings import Settings
from components.shared.io.atomic import write_json, write_text
from components.shared.scoring.shots import GROUPS

Values = Sequence[float | None]


def write_tables(out: Path, settings: Settings, study: Study, result: dict[str, Any]) -> None:
    """Writes OUT.json and OUT.md."""
    result = {**result, "machine": machine_facts(), "experiment": settings.experiment}
    write_json(out.with_suffix(".json"), result)
    write_text(out.with_suffix(".md"), markdown(settings, study, result))


def markdown(settings: Settings, study: Study, result: dict[str, Any]) -> str:
    """The tables: time, errors by reading, differences with what is worse, and the choice on validation images."""
    task, sizes, seeds = settings.task, result["sizes"], result["seeds"]
    digits = max(2, 2 - math.floor(math.log10(task.resolution) + 1e-9))
    lines = [
        f"# {study.title}: {settings.experiment}",
        "",
        f"{study.text}. {_count(len(seeds), 'seed')} ({', '.join(map(str, seeds))}); {result['split']} split, "
        f"{sizes['all']} images ({', '.join(f'{group} {sizes[group]}' for group in GROUPS[1:])}). MAE in {task.unit}: "
        "mean over seeds, in brackets the lowest and the highest. An unparseable answer counts as the worst possible "
        "error. Skill: 1 - MAE / MAE of the best constant on validation.",
        "",
        *_times(study, result),
        *(line for reading in study.readings for line in _readings(study, result, reading, digits)),
        "Differences of the absolute errors, paired by seed and image; below 0, the first is better. In brackets: the "
        "95 % interval for new seeds and new images, from crossed random effects.",
        "",
        *(line for comparison in study.comparisons for line in _comparison(study, result, comparison, digits)),
        *_choice(study, result, digits),
        facts_line(result["machine"]),
    ]
    return "\n".join(lines) + "\n"


def _times(study: Study, result: dict[str, Any]) -> list[str]:
    """Steps and seconds of every training."""
    rows = []
    for arm in (WARM, *study.arms):
        known = result["seconds"][arm]
        rows.append(f"| {study.name(arm)} | {_cell(result['steps'][arm], 0)} | {_cell(known, 0)} |")
    return [
        "Training time: processor time of the steps on a CPU, wall time on an accelerator, without loading and without "
        "validation passes.",
        "",
        *_header(["steps", "seconds"]),
        *rows,
        "",
    ]


def _readings(study: Study, result: dict[str, Any], reading: str, digits: int) -> list[str]:
    """One reading of all models."""
    rows = {study.name(arm): result["readings"][f"{arm}.{reading}"] for arm in (WARM, *study.arms)}
    known: list[str] = next((list(row["figures"]) for row in rows.values() if row["figures"]), [])
    names = sorted(known, key=lambda name: (name != "sd ratio", name))  # JSON does not keep an order
    lines = []
    for title, row in rows.items():
        cells = [_cell(row["mae"][group], digits, _empty(result, group)) for group in GROUPS]
        cells.append(_cell(_skill(result, row["mae"]["all"]), 2))
        cells += [_cell(row["figures"].get(name, [None]), 2) for name in names]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    for title, mae in result["constants"].items():
        cells = [_cell([mae[group]], digits, "empty") for group in GROUPS] + [_cell(_skill(result, [mae["all"]]), 2)]
        lines.append(f"| {title} | {' | '.join(cells + ['–'] * len(names))} |")
    note = []
    if reading == "equal":
        note = [
            "The balance at which the many-shot MAE equals that of the same seed's warm start by greedy text, "
            "interpolated between two balances. It is found on the very images that are judged: for comparing "
            "methods at equal cost only, not a figure to expect.",
            "",
        ]
    title = READINGS[reading]
    return [
        f"## {title[0].upper()}{title[1:]}",
        "",
        *note,
        *_header([f"MAE {GROUPS[0]}", *GROUPS[1:], "skill", *names]),
        *lines,
        "",
    ]


def _skill(result: dict[str, Any], mae: Values) -> Values:
    """1 - MAE / MAE of the best constant on validation, on all images; one value per seed."""
    reference = next(iter(result["constants"].values()))["all"]
    return [None if value is None or not reference else 1 - value / reference for value in mae]


def _comparison(study: Study, result: dict[str, Any], comparison: Comparison, digits: int) -> list[str]:
    rows = []
    for pair in comparison.pairs:
        groups = result["differences"][" - ".join(pair)]
        cells = [_difference(groups[group], len(result["seeds"]), digits) for group in GROUPS]
        rows.append(f"| {study.difference(pair)} | {' | '.join(cells)} |")
    verdict = _verdict(study, result, comparison, digits)
    return [f"## {comparison.title}", "", *_header(GROUPS), *rows, "", verdict, ""]


def _verdict(study: Study, result: dict[str, Any], comparison: Comparison, digits: int) -> str:
    """What is worse, and where no gain on all images is shown."""
    worse, unclear = [], []
    for pair in comparison.pairs:
        groups = {g: d for g, d in result["differences"][" - ".join(pair)].items() if d["ci"]}
        shown = {group: f"{group} ({found['difference']:+.{digits}f})" for group, found in groups.items()}
        if above := [shown[group] for group, found in groups.items() if found["ci"][0] > 0]:
            worse.append(f"{study.difference(pair)} on {', '.join(above)}")
        if "all" in groups and groups["all"]["ci"][0] <= 0 <= groups["all"]["ci"][1]:
            unclear.append(f"{study.difference(pair)} ({groups['all']['difference']:+.{digits}f})")
    sentences = [f"Worse, the whole interval above 0: {'; '.join(worse)}." if worse else "No interval is above 0."]
    if unclear:
        sentences.append(f"No difference shown on all images, the interval contains 0: {'; '.join(unclear)}.")
    return " ".join(sentences)


def _choice(study: Study, result: dict[str, Any], digits: int) -> list[str]:
    """The readings judged on the images that choices are made on."""
    if not result["tune"]:
        return []
    tolerance, seeds = result["tolerance"], len(result["seeds"])
    kept = {
        name: sum(bound is None or bound <= tolerance for bound in found["bound"])
        for name, found in result["tune"].items()
    }
    means = {name: float(np.mean(found["mae"])) for name, found in result["tune"].items()}
    rows = [
        f"| {study.answers(name)} | {_cell(result['tune'][name]['mae'], digits)} | {kept[name]} of {seeds} |"
        for name in sorted(means, key=lambda name: (means[name], name))
    ]
    allowed = [name for name in means if 2 * kept[name] > seeds]
    best = min(allowed, key=lambda name: (means[name], name), default=None)
    chosen = f"**{study.answers(best)}** ({means[best]:.{digits}f})" if best else "none"
    return [
        "## Choice on tune",
        "",
        "Without the test images: MAE with every label weighing the same on `tune`, the half of validation that "
        "choices are made on. A reading keeps the tolerance if the one-sided 95 % bound of its many-shot loss "
        f"against the warm start's greedy text is at most {tolerance:g}.",
        "",
        *_header(["MAE", "tolerance kept, seeds"]),
        *rows,
        "",
        f"Lowest among those that keep the tolerance in most seeds: {chosen}.",
        "",
    ]


def _header(names: Sequence[str]) -> list[str]:
    return [f"| | {' | '.join(names)} |", "|---|" + "---|" * len(names)]


def _cell(values: Values, digits: int, missing: str = "not reached") -> str:
    """The mean over seeds with the range; how many seeds, if not all are known."""
    known = [value for value in values if value is not None]
    if not known:
        return missing
    mean = f"{np.mean(known):.{digits}f}"
    low, high = (f"{value:.{digits}f}" for value in (min(known), max(known)))
    spread = f" ({low} to {high})" if low != high else ""
    return mean + spread + (f", {_count(len(known), 'seed')}" if len(known) < len(values) else "")


def _difference(found: dict[str, Any], seeds: int, digits: int) -> str:
    if not found["n"]:
        return "empty"
    if found["difference"] is None:
        return "not reached"
    ends = f" [{', '.join(f'{end:+.{digits}f}' for end in found['ci'])}]" if found["ci"] else ""
    fewer = f", {_count(found['seeds'], 'seed')}" if found["seeds"] < seeds else ""
    return f"{found['difference']:+.{digits}f}{ends}{fewer}"


def _empty(result: dict[str, Any], group: str) -> str:
    return "not reached" if result["sizes"][group] else "empty"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
