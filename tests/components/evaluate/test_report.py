"""What the report and the figures say, from answers made by hand."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from components.evaluate import plots, report
from components.evaluate.plots import binned_mean, edges, mae_per_bin, plot_data, pull, write_figures
from components.evaluate.report import difference_rows, table, verdict, worst_rows
from components.evaluate.results import Judgement
from components.settings import Settings
from components.shared.reporting.tail import write_tail
from components.shared.rows.histogram import label_histogram
from components.shared.rows.rows import Row, ShardWriter
from tests.support.gray_world import gray as gray_image
from tests.support.judgements import judgement

NAN = float("nan")
TRAIN = [50.0] * 120 + [70.0] * 30 + [90.0] * 5
TARGETS = [50.0] * 4 + [70.0] * 4 + [90.0] * 4


@pytest.fixture
def loses(settings: Settings, tmp_path: Path) -> Judgement:
    """GRPO better on few, worse on many, like SFT on medium; one unparseable answer more."""
    return judgement(
        settings, tmp_path, TRAIN, TARGETS,
        base=[NAN] * 12,
        sft=[50, 50, 51, 50, 70, 71, 69, 72, 80, 80, 78, 82],
        grpo=[54, 55, 46, 53, 71, 70, 72, 69, 90, 88, NAN, 91],
    )  # fmt: skip


def test_the_verdict_names_losses(loses: Judgement) -> None:
    said = " ".join(verdict(loses))
    assert re.search(r"CCC-GRPO loses to SFT on .*many \(\+3\.75 %\)", said)
    assert "More of its answers are unparseable: 8.33 % against 0.00 %" in said
    rows = {row["group"]: row for row in difference_rows(loses)}
    assert rows["many"]["says"] == "worse"
    assert rows["medium"]["says"].startswith("no difference shown")


def test_the_table_marks_the_best_and_shows_intervals(loses: Judgement) -> None:
    (_, base), (_, sft), (_, grpo) = table(loses)
    # Columns: MAE all, many, medium, few; GM likewise; sd ratio; unparseable.
    assert (sft[1].value, sft[1].best, grpo[1].best) == ("0.25", True, False)
    assert (base[3].value, base[3].interval) == ("90.00", "90.00–90.00")
    assert grpo[9].value == "8.33 %"
    assert len(base) == 10


def test_an_empty_shot_group_is_shown_as_empty(settings: Settings, tmp_path: Path) -> None:
    alike = {name: [50.0, 71.0] for name in ("base", "sft", "grpo")}
    made = judgement(settings, tmp_path, TRAIN, [50.0, 70.0], **alike)
    assert [cell.value for cell in table(made)[0][1]][3] == "–"
    assert difference_rows(made)[3]["says"] == "no test images"
    write_figures(made, tmp_path)
    assert Image.open(tmp_path / "errors.png").width > 1000


def test_text_of_a_model_is_no_markup(loses: Judgement, tmp_path: Path) -> None:
    ingest = tmp_path / "ingest"
    ingest.mkdir()
    with ShardWriter(ingest, "test", 1) as shards:
        for k, target in enumerate(TARGETS):
            shards.add(Row(f"image-{k}", gray_image(target, k), target, "?", "made"))
    pages = tmp_path / "report"
    pages.mkdir()
    write_figures(loses, pages)
    histogram = label_histogram({"train": TRAIN, "val": [], "test": TARGETS}, loses.settings.task)
    write_tail(histogram, loses.settings.task, pages / report.TAIL)
    report.write_report(loses, histogram, ingest, pages)
    html = (pages / "report.html").read_text()
    assert "<b>idea" not in html
    assert "unparseable: &#39;no &lt;b&gt;idea" in html
    assert "floored at 0.5" in html
    assert "farther from the truth" in html
    assert "The fullest label of train has 24 times the images of the emptiest." in html
    assert "33.3 % are many-shot, 33.3 % are medium-shot, 33.3 % are few-shot." in " ".join(html.split())


def test_worst_rows_are_the_largest_errors_of_the_group(loses: Judgement) -> None:
    assert worst_rows(loses.models[2], "many", 2) == [1, 0]  # errors 4, 5, 4, 3: of equals the earlier
    assert worst_rows(loses.models[2], "few", 1) == [10]  # the unparseable one


def test_bins_of_the_figures_hold_every_label(settings: Settings, tmp_path: Path) -> None:
    alike = {name: [50.0, 71.0] for name in ("base", "sft", "grpo")}
    for low, high, width, resolution in ((0, 100, 1, 1), (1, 228, 1, 1), (0.0, 9.9, 0.3, 0.1), (2, 8, 1, 1)):
        changes = {"low": low, "high": high, "bin_width": width, "resolution": resolution}
        task = settings.task.model_copy(update=changes)
        made = judgement(settings.model_copy(update={"task": task}), tmp_path, TRAIN, [50.0, 70.0], **alike)
        limits = edges(made)
        assert len(limits) - 1 <= plots.MOST_BINS
        assert limits[0] <= low - resolution / 2 + 1e-9
        assert limits[-1] >= high + resolution / 2 - 1e-9
        assert (np.diff(limits) > 0).all()


def test_mae_per_bin_by_hand(loses: Judgement, tmp_path: Path) -> None:
    rows = {row["target"]: row for row in mae_per_bin(loses) if row["test"]}
    assert len(rows) == 3
    holding_70 = next(row for target, row in rows.items() if abs(target - 70) < 2.1)  # type: ignore[operator]
    assert holding_70["train"] == 30
    assert holding_70["sft"] == pytest.approx(1.0)
    plot_data(loses, tmp_path / "plots")
    with open(tmp_path / "plots" / "predictions.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 36
    assert lines[-2] == {"model": "grpo", "id": "image-10", "shot": "few", "target": "90.0", "value": "", "error": ""}
    assert lines[-1]["error"] == "1.0"


def test_pull_is_positive_towards_the_mean_of_training(loses: Judgement) -> None:
    assert loses.train.mean() == pytest.approx(55.16, abs=0.01)
    # Truth 50 answered 54: up, towards 55; truth 90 answered 88: down, towards it; 91: away.
    np.testing.assert_allclose(pull(loses.models[2], loses.train)[[0, 9, 11]], [4, 2, -1])


def test_binned_mean_leaves_out_bins_with_too_few_answers() -> None:
    targets, values = np.array([1.0] * 5 + [11.0] * 4), np.array([1.0, 2, 3, 4, 5] + [9.0] * 4)
    middle, mean = binned_mean(targets, values, np.array([0.0, 10.0, 20.0]))
    assert (middle.tolist(), mean.tolist()) == ([5.0], [3.0])
