"""The report: one HTML file that needs nothing else. Tables first, then figures, then the images it is worst at."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from components.evaluate.plots import COLOURS, FIGURES
from components.evaluate.results import Judged, Judgement
from components.settings import Settings
from components.shared.rows.histogram import LabelBin, share_metrics
from components.shared.rows.rows import read_rows
from components.shared.scoring.answers import decimals
from components.shared.scoring.shots import GROUPS, SHOTS
from components.steps import STEPS

TEMPLATE = Path(__file__).with_name("report.html")
TAIL = "tail.png"
DATA_DOCS = "../data_docs/index.html"  # where validate has put them, from reports/evaluate
WORST = 6
SIDE = 128  # pixels of an inlined image


@dataclass(frozen=True)
class Cell:
    """A figure of a table: the value, its interval, and whether it is the best of its column."""

    value: str
    interval: str = ""
    best: bool = False


def write_report(judgement: Judgement, histogram: Sequence[LabelBin], ingest: Path, folder: Path) -> None:
    """Writes `folder`/report.html, with the figures that lie there inside.

    Args:
        histogram: the labels of all splits.
        ingest: row shards; the images of the worst answers come from its test split.
    """
    from jinja2 import Environment, StrictUndefined

    task = judgement.settings.task
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    html = page.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        task=task,
        counts={group: int(judgement.models[0].predictions.members(group).sum()) for group in GROUPS},
        rows=table(judgement),
        floor=f"{judgement.models[0].predictions.floor:g}",
        resamples=judgement.settings.evaluate.bootstrap,
        differences=difference_rows(judgement),
        verdict=verdict(judgement),
        figures=[(name, title, _inline((folder / f"{name}.png").read_bytes())) for name, title in FIGURES.items()],
        tail=_inline((folder / TAIL).read_bytes()),
        data=share_metrics(histogram),
        docs=DATA_DOCS,
        worst=worst_images(judgement, ingest),
        titles={model.name: model.title for model in judgement.models},
        colours=COLOURS,
        settings=settings_text(judgement.settings),
    )
    (folder / "report.html").write_text(html, encoding="utf-8")


def table(judgement: Judgement) -> list[tuple[Judged, list[Cell]]]:
    """A row a model: MAE of each group, GM of each group, sd ratio, share of unparseable answers."""
    columns: list[list[Cell]] = []
    for metric in ("mae", "gm"):
        for group in GROUPS:
            figures = [
                (m.figures["groups"][group][metric], m.figures["groups"][group][f"{metric}_ci"])
                for m in judgement.models
            ]
            columns.append(_column(figures, lambda value: value))
    ratios = [(model.figures["sd_ratio"], model.figures["sd_ratio_ci"]) for model in judgement.models]
    columns.append(_column(ratios, lambda value: abs(value - 1)))
    shares = [
        (100 * m.figures["unparseable"], [100 * x for x in m.figures["unparseable_ci"]]) for m in judgement.models
    ]
    columns.append(_column(shares, lambda value: value, unit=" %"))
    return [(model, [column[row] for column in columns]) for row, model in enumerate(judgement.models)]


def _column(figures: Sequence[tuple[float | None, list[float] | None]], badness: Any, unit: str = "") -> list[Cell]:
    """Cells of a column; the smallest badness is the best, and of equals all are."""
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


def difference_rows(judgement: Judgement) -> list[dict[str, str]]:
    """GRPO against SFT by group, in words."""
    rows = []
    for group, found in judgement.differences.items():
        if found["difference"] is None:
            rows.append(
                {"group": group, "n": "0", "difference": "–", "interval": "", "says": "no test images", "kind": ""}
            )
            continue
        low, high = found["ci"]
        says, kind = "no difference shown: the interval holds 0", ""
        if high < 0:
            says, kind = "better", "gain"
        elif low > 0:
            says, kind = "worse", "loss"
        rows.append(
            {
                "group": group,
                "n": str(found["n"]),
                "difference": f"{found['difference']:+.2f}",
                "interval": f"{low:+.2f} to {high:+.2f}",
                "says": says,
                "kind": kind,
            }
        )
    return rows


def verdict(judgement: Judgement) -> list[str]:
    """Where the method gains and where it loses against SFT, a sentence each; losses are never left out."""
    ours = next(m for m in judgement.models if m.name == "grpo")
    theirs = next(m for m in judgement.models if m.name == "sft")
    unit = f" {judgement.settings.task.unit}".rstrip()
    known = {group: d for group, d in judgement.differences.items() if d["difference"] is not None}
    better = [f"{group} ({d['difference']:+.2f}{unit})" for group, d in known.items() if d["ci"][1] < 0]
    worse = [f"{group} ({d['difference']:+.2f}{unit})" for group, d in known.items() if d["ci"][0] > 0]
    open_ = [f"{group} ({d['difference']:+.2f}{unit})" for group, d in known.items() if d["ci"][0] <= 0 <= d["ci"][1]]
    sentences = []
    for start, groups in (
        (f"{ours.title} is better than {theirs.title} on", better),
        (f"{ours.title} loses to {theirs.title} on", worse),
        ("No difference is shown on", open_),
    ):
        if groups:
            sentences.append(f"{start} {', '.join(groups)}.")
    a, b = ours.figures["sd_ratio"], theirs.figures["sd_ratio"]
    if a is not None and b is not None and abs(a - 1) > abs(b - 1):
        sentences.append(f"Its spread is farther from that of the truth: sd ratio {a:.2f} against {b:.2f}.")
    a, b = ours.figures["unparseable"], theirs.figures["unparseable"]
    if a > b:
        sentences.append(f"More of its answers are unparseable: {100 * a:.2f} % against {100 * b:.2f} %.")
    return sentences


def worst_images(judgement: Judgement, ingest: Path) -> dict[str, list[dict[str, str]]]:
    """The largest errors of GRPO in each shot group: image, truth, and what SFT and GRPO answered."""
    ours = next(m for m in judgement.models if m.name == "grpo")
    theirs = next(m for m in judgement.models if m.name == "sft")
    chosen = {shot: worst_rows(ours, shot, WORST) for shot in SHOTS}
    ids = ours.table["id"].to_pylist()
    wanted = {ids[row] for rows in chosen.values() for row in rows}
    images: dict[str, str] = {}
    for batch in read_rows(ingest, "test"):
        for place, id in enumerate(batch.column("id").to_pylist()):
            if id in wanted:
                images[id] = thumbnail(batch.column("image")[place].as_py()["bytes"])
    digits = decimals(judgement.settings.task.resolution)
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


def worst_rows(model: Judged, shot: str, count: int) -> list[int]:
    """Rows of the largest errors in a shot group, the largest first; ties in the order of the test set."""
    rows = np.flatnonzero(model.predictions.members(shot))
    order = np.argsort(-model.predictions.errors[rows], kind="stable")
    return [int(row) for row in rows[order[:count]]]


def _answer(model: Judged, row: int, digits: int) -> str:
    """The number, or the start of the text where it holds none."""
    value = model.predictions.values[row]
    if np.isfinite(value):
        return f"{value:.{digits}f}"
    text = model.table["text"][row].as_py()
    return f"unparseable: {text[:40]!r}"


def thumbnail(data: bytes) -> str:
    """An encoded image, made small, as a data URI."""
    from PIL import Image

    from components.shared.rows.images import decode_image

    image = decode_image(data)
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "PNG")
    return _inline(out.getvalue())


def _inline(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def settings_text(settings: Settings) -> str:
    """The sections that evaluate goes by, as params.yaml has them. It is not told the others."""
    tree: Mapping[str, Any] = settings.tree()
    return yaml.safe_dump(
        {name: tree[name] for name in STEPS["evaluate"].sections}, sort_keys=False, allow_unicode=True
    )
