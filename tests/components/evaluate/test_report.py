"""Report and figures, on hand-written answers."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from components.evaluate import plots, report
from components.evaluate.plots import (
    binned_mean,
    edges,
    error_towards_mean,
    mae_per_bin,
    write_figures,
    write_plot_data,
)
from components.evaluate.report import difference_rows, table, verdict, worst_rows
from components.evaluate.results import EvaluationResults
from components.settings import Settings
from components.shared.reporting.tail import write_tail
from components.shared.rows.histogram import label_histogram
from components.shared.rows.rows import Row, ShardWriter
from tests.support.evaluation_results import evaluation_results
from tests.support.gray_world import gray as gray_image

NAN = float("nan")
TRAIN = [50.0] * 120 + [70.0] * 30 + [90.0] * 5
TARGETS = [50.0] * 4 + [70.0] * 4 + [90.0] * 4


@pytest.fixture
def results(settings: Settings, tmp_path: Path) -> EvaluationResults:
    """GRPO is better than SFT on few, worse on many, equal on medium, and has one unparseable answer more."""
    return evaluation_results(
        settings, tmp_path, TRAIN, TARGETS,
        base=[NAN] * 12,
        sft=[50, 50, 51, 50, 70, 71, 69, 72, 80, 80, 78, 82],
        grpo=[54, 55, 46, 53, 71, 70, 72, 69, 90, 88, NAN, 91],
    )  # fmt: skip


def test_verdict_lists_losses(results: EvaluationResults) -> None:
    text = " ".join(verdict(results))
    assert re.search(r"CCC-GRPO is worse than SFT on .*many \(\+3\.75 %\)", text)
    assert "More of its answers are unparseable: 8.33 % against 0.00 %" in text
    rows = {row["group"]: row for row in difference_rows(results)}
    assert rows["many"]["says"] == "worse"
    assert rows["medium"]["says"].startswith("no difference shown")


def test_table_marks_the_best_value_and_has_intervals(results: EvaluationResults) -> None:
    (_, base), (_, sft), (_, grpo) = table(results)
    # Columns: MAE all, many, medium, few; GM likewise; sd ratio; unparseable.
    assert (sft[1].value, sft[1].best, grpo[1].best) == ("0.25", True, False)
    assert (base[3].value, base[3].interval) == ("90.00", "90.00–90.00")
    assert grpo[9].value == "8.33 %"
    assert len(base) == 10


def test_empty_shot_group_is_shown_as_empty(settings: Settings, tmp_path: Path) -> None:
    alike = {name: [50.0, 71.0] for name in ("base", "sft", "grpo")}
    made = evaluation_results(settings, tmp_path, TRAIN, [50.0, 70.0], **alike)
    assert [cell.value for cell in table(made)[0][1]][3] == "–"
    assert difference_rows(made)[3]["says"] == "no test images"
    write_figures(made, tmp_path)
    assert Image.open(tmp_path / "errors.png").width > 1000


def test_model_text_is_escaped_in_the_report(results: EvaluationResults, tmp_path: Path) -> None:
    ingest = tmp_path / "ingest"
    ingest.mkdir()
    with ShardWriter(ingest, "test", 1) as shards:
        for k, target in enumerate(TARGETS):
            shards.add(Row(f"image-{k}", gray_image(target, k), target, "?", "made"))
    pages = tmp_path / "report"
    pages.mkdir()
    write_figures(results, pages)
    histogram = label_histogram({"train": TRAIN, "val": [], "test": TARGETS}, results.settings.task)
    write_tail(histogram, results.settings.task, pages / report.TAIL)
    report.write_report(results, histogram, ingest, pages)
    html = (pages / "report.html").read_text()
    assert "<b>idea" not in html
    assert "unparseable: &#39;no &lt;b&gt;idea" in html
    assert "floored at 0.5" in html
    assert "farther from the true value" in html
    assert "The most frequent label of train has 24 times as many images as the rarest." in html
    assert "33.3 % are many-shot, 33.3 % are medium-shot, 33.3 % are few-shot." in " ".join(html.split())


def test_worst_rows_are_the_largest_errors_of_a_group(results: EvaluationResults) -> None:
    assert worst_rows(results.models[2], "many", 2) == [1, 0]  # errors 4, 5, 4, 3; ties: the earlier row first
    assert worst_rows(results.models[2], "few", 1) == [10]  # the unparseable one


def test_bins_of_the_figures_contain_every_label(settings: Settings, tmp_path: Path) -> None:
    alike = {name: [50.0, 71.0] for name in ("base", "sft", "grpo")}
    for low, high, width, resolution in ((0, 100, 1, 1), (1, 228, 1, 1), (0.0, 9.9, 0.3, 0.1), (2, 8, 1, 1)):
        changes = {"low": low, "high": high, "bin_width": width, "resolution": resolution}
        task = settings.task.model_copy(update=changes)
        made = evaluation_results(settings.model_copy(update={"task": task}), tmp_path, TRAIN, [50.0, 70.0], **alike)
        limits = edges(made)
        assert len(limits) - 1 <= plots.MAX_BINS
        assert limits[0] <= low - resolution / 2 + 1e-9
        assert limits[-1] >= high + resolution / 2 - 1e-9
        assert (np.diff(limits) > 0).all()


def test_mae_per_bin_matches_hand_computed_values(results: EvaluationResults, tmp_path: Path) -> None:
    rows = {row["target"]: row for row in mae_per_bin(results) if row["test"]}
    assert len(rows) == 3
    bin_of_70 = next(row for target, row in rows.items() if abs(target - 70) < 2.1)  # type: ignore[operator]
    assert bin_of_70["train"] == 30
    assert bin_of_70["sft"] == pytest.approx(1.0)
    write_plot_data(results, tmp_path / "plots")
    with open(tmp_path / "plots" / "predictions.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 36
    assert lines[-2] == {"model": "grpo", "id": "image-10", "shot": "few", "target": "90.0", "value": "", "error": ""}
    assert lines[-1]["error"] == "1.0"


def test_error_towards_mean_is_positive_towards_the_training_mean(results: EvaluationResults) -> None:
    assert results.train.mean() == pytest.approx(55.16, abs=0.01)
    # Target 50, answer 54: towards the mean of 55. Target 90, answer 88: towards it; answer 91: away from it.
    np.testing.assert_allclose(error_towards_mean(results.models[2], results.train)[[0, 9, 11]], [4, 2, -1])


def test_binned_mean_omits_bins_with_too_few_answers() -> None:
    targets, values = np.array([1.0] * 5 + [11.0] * 4), np.array([1.0, 2, 3, 4, 5] + [9.0] * 4)
    middle, mean = binned_mean(targets, values, np.array([0.0, 10.0, 20.0]))
    assert (middle.tolist(), mean.tolist()) == ([5.0], [3.0])
