"""Writes the report, one self-contained HTML file: tables, figures, and the images with the largest errors."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from components.evaluate.plots import COLOURS, FIGURES
from components.evaluate.results import EvaluationResults, ModelResults
from components.settings import Settings
from components.shared.rows.histogram import LabelBin, distribution_metrics
from components.shared.rows.rows import read_rows
from components.shared.scoring.answers import decimals
from components.shared.scoring.shots import GROUPS, SHOTS
from components.steps import STEPS

TEMPLATE = Path(__file__).with_name("report.html")
TAIL = "tail.png"
DATA_DOCS = "../data_docs/index.html"  # validate's output, relative to reports/evaluate
WORST_IMAGES = 6  # per shot group
THUMBNAIL_SIDE = 128  # pixels


@dataclass(frozen=True)
class Cell:
    """One cell of a table: the value, its interval, and whether it is the best of its column."""

    value: str
    interval: str = ""
    best: bool = False


def write_report(results: EvaluationResults, histogram: Sequence[LabelBin], ingest: Path, folder: Path) -> None:
    """Writes `folder`/report.html with the figures of that folder embedded.

    Args:
        histogram: the labels of all splits.
        ingest: row shards; the images with the largest errors come from the test split.
    """
    from jinja2 import Environment, StrictUndefined

    task = results.settings.task
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    html = page.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        task=task,
        counts={group: int(results.models[0].predictions.members(group).sum()) for group in GROUPS},
        rows=table(results),
        floor=f"{results.models[0].predictions.floor:g}",
        resamples=results.settings.evaluate.bootstrap,
        differences=difference_rows(results),
        verdict=verdict(results),
        figures=[(name, title, _inline((folder / f"{name}.png").read_bytes())) for name, title in FIGURES.items()],
        tail=_inline((folder / TAIL).read_bytes()),
        data=distribution_metrics(histogram),
        docs=DATA_DOCS,
        worst=worst_images(results, ingest),
        titles={model.name: model.title for model in results.models},
        colours=COLOURS,
        settings=settings_text(results.settings),
    )
    (folder / "report.html").write_text(html, encoding="utf-8")


def table(results: EvaluationResults) -> list[tuple[ModelResults, list[Cell]]]:
    """One row per model: MAE by group, GM by group, sd ratio, share of unparseable answers."""
    columns: list[list[Cell]] = []
    for metric in ("mae", "gm"):
        for group in GROUPS:
            figures = [
                (m.metrics["groups"][group][metric], m.metrics["groups"][group][f"{metric}_ci"]) for m in results.models
            ]
            columns.append(_column(figures, lambda value: value))
    ratios = [(model.metrics["sd_ratio"], model.metrics["sd_ratio_ci"]) for model in results.models]
    columns.append(_column(ratios, lambda value: abs(value - 1)))
    shares = [(100 * m.metrics["unparseable"], [100 * x for x in m.metrics["unparseable_ci"]]) for m in results.models]
    columns.append(_column(shares, lambda value: value, unit=" %"))
    return [(model, [column[row] for column in columns]) for row, model in enumerate(results.models)]


def _column(figures: Sequence[tuple[float | None, list[float] | None]], badness: Any, unit: str = "") -> list[Cell]:
    """Cells of a column; all cells with the smallest badness are marked as best."""
    known = [badness(value) for value, _ in figures if value is not None]
    least = min(known) if known else None
    cells = []
    for value, ci in figures:
        if value is None:
            cells.append(Cell("–"))
        else:
            interval = f"{ci[0]:.2f}–{ci[1]:.2f}" if ci else ""
            cells.append(Cell(f"{value:.2f}{unit}", interval, badness(value) == least))
    return cells


def difference_rows(results: EvaluationResults) -> list[dict[str, str]]:
    """Rows of the table GRPO against SFT, one per group."""
    rows = []
    for group, paired in results.differences.items():
        if paired["difference"] is None:
            rows.append(
                {"group": group, "n": "0", "difference": "–", "interval": "", "says": "no test images", "kind": ""}
            )
            continue
        low, high = paired["ci"]
        says, kind = "no difference shown: the interval contains 0", ""
        if high < 0:
            says, kind = "better", "gain"
        elif low > 0:
            says, kind = "worse", "loss"
        rows.append(
            {
                "group": group,
                "n": str(paired["n"]),
                "difference": f"{paired['difference']:+.2f}",
                "interval": f"{low:+.2f} to {high:+.2f}",
                "says": says,
                "kind": kind,
            }
        )
    return rows


def verdict(results: EvaluationResults) -> list[str]:
    """Sentences that say where GRPO is better than SFT and where it is worse; every loss is listed."""
    ours = next(m for m in results.models if m.name == "grpo")
    theirs = next(m for m in results.models if m.name == "sft")
    unit = f" {results.settings.task.unit}".rstrip()
    known = {group: d for group, d in results.differences.items() if d["difference"] is not None}
    better = [f"{group} ({d['difference']:+.2f}{unit})" for group, d in known.items() if d["ci"][1] < 0]
    worse = [f"{group} ({d['difference']:+.2f}{unit})" for group, d in known.items() if d["ci"][0] > 0]
    undecided = [
        f"{group} ({d['difference']:+.2f}{unit})" for group, d in known.items() if d["ci"][0] <= 0 <= d["ci"][1]
    ]
    sentences = []
    for start, groups in (
        (f"{ours.title} is better than {theirs.title} on", better),
        (f"{ours.title} is worse than {theirs.title} on", worse),
        ("No difference is shown on", undecided),
    ):
        if groups:
            sentences.append(f"{start} {', '.join(groups)}.")
    a, b = ours.metrics["sd_ratio"], theirs.metrics["sd_ratio"]
    if a is not None and b is not None and abs(a - 1) > abs(b - 1):
        sentences.append(
            f"The spread of its answers is farther from that of the true values: sd ratio {a:.2f} against {b:.2f}."
        )
    a, b = ours.metrics["unparseable"], theirs.metrics["unparseable"]
    if a > b:
        sentences.append(f"More of its answers are unparseable: {100 * a:.2f} % against {100 * b:.2f} %.")
    return sentences


def worst_images(results: EvaluationResults, ingest: Path) -> dict[str, list[dict[str, str]]]:
    """The images with the largest errors of GRPO in each shot group, with true value and both answers."""
    ours = next(m for m in results.models if m.name == "grpo")
    theirs = next(m for m in results.models if m.name == "sft")
    chosen = {shot: worst_rows(ours, shot, WORST_IMAGES) for shot in SHOTS}
    ids = ours.table["id"].to_pylist()
    wanted = {ids[row] for rows in chosen.values() for row in rows}
    images: dict[str, str] = {}
    for batch in read_rows(ingest, "test"):
        for row, id in enumerate(batch.column("id").to_pylist()):
            if id in wanted:
                images[id] = thumbnail(batch.column("image")[row].as_py()["bytes"])
    digits = decimals(results.settings.task.resolution)
    return {
        shot: [
            {
                "id": ids[row],
                "image": images[ids[row]],
                "truth": f"{ours.predictions.targets[row]:.{digits}f}",
                "grpo": _answer(ours, row, digits),
                "sft": _answer(theirs, row, digits),
            }
            for row in rows
        ]
        for shot, rows in chosen.items()
    }


def worst_rows(model: ModelResults, shot: str, count: int) -> list[int]:
    """Row numbers of the `count` largest errors in a shot group, largest first; ties in test set order."""
    rows = np.flatnonzero(model.predictions.members(shot))
    order = np.argsort(-model.predictions.errors[rows], kind="stable")
    return [int(row) for row in rows[order[:count]]]


def _answer(model: ModelResults, row: int, digits: int) -> str:
    """The number that the model answered, or the start of an unparseable text."""
    value = model.predictions.values[row]
    if np.isfinite(value):
        return f"{value:.{digits}f}"
    text = model.table["text"][row].as_py()
    return f"unparseable: {text[:40]!r}"


def thumbnail(data: bytes) -> str:
    """Shrinks an encoded image and returns it as a data URI."""
    from PIL import Image

    from components.shared.rows.images import decode_image

    image = decode_image(data)
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "PNG")
    return _inline(out.getvalue())


def _inline(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def settings_text(settings: Settings) -> str:
    """The sections of params.yaml that evaluate depends on; the step does not receive the others."""
    tree: Mapping[str, Any] = settings.tree()
    return yaml.safe_dump(
        {name: tree[name] for name in STEPS["evaluate"].sections}, sort_keys=False, allow_unicode=True
    )
