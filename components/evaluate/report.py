"""Writes the report, one self-contained HTML file: tables, figures, and the images with the largest errors."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from components.evaluate import report_tables as tables
from components.evaluate.images import inline, inline_png, thumbnails, worst_rows
from components.evaluate.palette import COLOURS
from components.evaluate.plots import FIGURES
from components.evaluate.results import Answers, EvaluationResults
from components.settings import Settings
from components.shared.io.secrets import masked_json
from components.shared.rows.histogram import LabelBin, distribution_metrics
from components.shared.scoring.answers import decimals
from components.shared.scoring.shots import GROUPS, SHOTS
from components.steps import STEPS

TEMPLATE = Path(__file__).with_name("report.html")
TAIL = "tail.png"
DATA_DOCS = "../data_docs/index.html"  # validate's output, relative to reports/evaluate
WORST_IMAGES = 6  # per shot group


def write_report(results: EvaluationResults, histogram: Sequence[LabelBin], ingest: Path, folder: Path) -> None:
    """Writes `folder`/report.html with the figures of that folder embedded.

    Args:
        histogram: the labels of all splits.
        ingest: row shards; the images with the largest errors come from the test split.
    """
    from jinja2 import Environment, StrictUndefined

    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    html = page.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        task=results.settings.task,
        counts={group: int(results.members(group).sum()) for group in GROUPS},
        tables=tables,
        results=results,
        served=results.served_answers,
        coverage=f"{100 * results.settings.answer.coverage:g}",
        floor=f"{results.served_answers.predictions.floor:g}",
        resamples=results.settings.evaluate.bootstrap,
        units=results.units,
        figures={name: inline_png((folder / f"{name}.png").read_bytes()) for name in FIGURES},
        plots=FIGURES,
        tail=inline_png((folder / TAIL).read_bytes()),
        data=distribution_metrics(histogram),
        docs=DATA_DOCS,
        worst=worst_images(results, ingest),
        titles={model.name: model.title for model in results.models},
        colours=COLOURS,
        settings=settings_text(results.settings),
    )
    (folder / "report.html").write_text(html, encoding="utf-8")


def worst_images(results: EvaluationResults, ingest: Path) -> dict[str, list[dict[str, Any]]]:
    """The images with the largest errors of the served answers in each shot group, with the texts beside them."""
    chosen = {shot: worst_rows(results, shot, WORST_IMAGES) for shot in SHOTS}
    ids = results.models[0].table["id"].to_pylist()
    shown_ids = {ids[row] for rows in chosen.values() for row in rows}
    images = thumbnails(ingest, shown_ids, results.settings.task.grey_bits)
    shown = {"served": results.served_answers}
    for name in ("sft.text", "grpo.text"):
        if name != results.served.name:
            shown[results.answers(name).title] = results.answers(name)
    digits = decimals(results.settings.task.resolution)
    return {
        shot: [
            {
                "id": ids[row],
                "image": inline(images[ids[row]]),
                "truth": f"{results.targets[row]:.{digits}f}",
                "answers": {title: _answer(results, answers, row, digits) for title, answers in shown.items()},
            }
            for row in rows
        ]
        for shot, rows in chosen.items()
    }


def _answer(results: EvaluationResults, answers: Answers, row: int, digits: int) -> str:
    """The number that was answered, or the start of an unparseable text."""
    value = answers.predictions.values[row]
    if np.isfinite(value):
        return f"{value:.{digits}f}"
    text = results.model(answers.model).table["text"][row].as_py()
    return f"unparseable: {text[:40]!r}"


def settings_text(settings: Settings) -> str:
    """The sections of params.yaml that evaluate depends on; the step does not receive the others."""
    tree: Mapping[str, Any] = masked_json(settings.tree())
    return yaml.safe_dump(
        {name: tree[name] for name in STEPS["evaluate"].sections}, sort_keys=False, allow_unicode=True
    )
