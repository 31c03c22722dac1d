"""Report, figures and their data, on hand-written answers and distributions."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from components.evaluate import plot_data, report
from components.evaluate import report_tables as tables
from components.evaluate.error_plots import binned_mean, error_towards_mean
from components.evaluate.images import spread_rows, worst_rows
from components.evaluate.palette import shown
from components.evaluate.plot_data import edges, mae_per_bin, write_plot_data
from components.evaluate.plots import FIGURES, write_figures
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
ANSWERS: dict[str, list[float]] = {
    "base": [NAN] * 12,
    "sft": [50, 50, 51, 50, 70, 71, 69, 72, 80, 80, 78, 82],
    "grpo": [54, 55, 46, 53, 71, 70, 72, 69, 90, 88, NAN, 91],
}


def with_answer(settings: Settings, **changes: object) -> Settings:
    return settings.model_copy(update={"answer": settings.answer.model_copy(update=changes)})


@pytest.fixture
def results(settings: Settings, tmp_path: Path) -> EvaluationResults:
    """Text is served. GRPO is better on few, worse on many, equal on medium, and has one unparseable answer more."""
    return evaluation_results(with_answer(settings, source="text"), tmp_path, TRAIN, TARGETS, **ANSWERS)


@pytest.fixture
def chosen(settings: Settings, tmp_path: Path) -> EvaluationResults:
    """The distribution is served, with a given balance."""
    return evaluation_results(with_answer(settings, balance=0.25), tmp_path, TRAIN, TARGETS, **ANSWERS)


def written(results: EvaluationResults, folder: Path) -> str:
    """Draws the figures, writes the report and returns it."""
    ingest, pages, targets = folder / "ingest", folder / "report", results.targets.tolist()
    ingest.mkdir()
    pages.mkdir()
    with ShardWriter(ingest, "test", 1) as shards:
        for k, target in enumerate(targets):
            shards.add(Row(f"image-{k}", gray_image(target, k), target, "?", "made"))
    write_figures(results, ingest, pages)
    histogram = label_histogram({"train": TRAIN, "val": [], "test": targets}, results.settings.task)
    write_tail(histogram, results.settings.task, pages / report.TAIL)
    report.write_report(results, histogram, ingest, pages)
    return (pages / "report.html").read_text()


def test_text_serves_grpo_and_the_verdict_lists_losses(results: EvaluationResults) -> None:
    assert (results.served.name, results.served.reason) == ("grpo.text", "answer.from is text")
    text = " ".join(tables.verdict(results))
    assert re.search(r"CCC-GRPO, text is worse than SFT, text on .*many \(\+3\.75 %\)", text)
    assert "More of its answers are unparseable: 8.33 % against 0.00 %" in text
    ours, theirs, cells = tables.difference_rows(results)[0]
    assert (ours, theirs) == ("CCC-GRPO, text", "SFT, text")
    assert (cells[1].value, cells[1].note, cells[1].kind) == ("+3.75", "worse", "loss")
    assert cells[2].note == ""


def test_a_model_that_harms_common_numbers_is_served_only_if_both_do(settings: Settings, tmp_path: Path) -> None:
    answers = ANSWERS | {"grpo": [54, 55, 46, 53, 70, 70, 70, 70, 90, 90, 90, 90]}  # many +3.75, few -10
    for tolerance, served, reason in (
        (0.5, "sft.balanced", "alone keeps the many-shot loss on tune within 0.5; MAE on tune, every label"),
        (10.0, "grpo.balanced", "lower MAE on tune, every label"),
        (-1.0, "grpo.balanced", "lower MAE on tune, every label"),
    ):
        registry = settings.registry.model_copy(update={"tolerance_many": tolerance})
        made = evaluation_results(
            settings.model_copy(update={"registry": registry}), tmp_path, TRAIN, TARGETS, **answers
        )
        assert made.served.name == served
        assert made.served.reason.startswith(reason)


def test_losses_of_the_other_pairs_are_listed(chosen: EvaluationResults) -> None:
    assert chosen.served.name == "sft.balanced"
    pairs = [(ours, theirs) for ours, theirs, _ in tables.difference_rows(chosen)]
    assert pairs == [
        ("SFT, median, balance 0.25", "SFT, text"),
        ("CCC-GRPO, text", "SFT, text"),
        ("CCC-GRPO, median, balance 0.25", "SFT, median, balance 0.25"),
        ("SFT, median, balance 0.25", "CCC-GRPO, text"),
        ("CCC-GRPO, median, balance 0.25", "CCC-GRPO, text"),
    ]
    assert re.search(
        r"CCC-GRPO, text is worse than SFT, text on .*many \(\+3\.75 %\)", " ".join(tables.verdict(chosen))
    )


def test_table_has_a_row_for_each_way_and_marks_the_best_value(results: EvaluationResults) -> None:
    rows = {answers.name: cells for answers, cells in tables.table(results)}
    ways = ["text", "median", "mean", "stretched", "balanced"]
    assert list(rows) == [f"base.{way}" for way in ways[:3]] + [
        f"{m}.{way}" for m in ("sft", "grpo") for way in ways
    ] + [
        "constant.validation",
        "constant.training",
    ]
    # Columns: MAE all, many, medium, few; GM likewise; skill; sd ratio; unparseable.
    best = {name for name, cells in rows.items() if cells[1].best}
    assert "base.median" in best, "equal probabilities have the median 50, which is the label of many"
    assert "sft.text" not in best
    assert rows["sft.text"][1].value == "0.25"
    assert (rows["base.text"][3].value, rows["base.text"][3].interval) == ("90.00", "90.00–90.00")
    assert rows["grpo.text"][10].value == "8.33 %"
    assert rows["sft.median"][1].value == "0.25", "the median of a distribution around the answer is the answer"
    assert {len(cells) for cells in rows.values()} == {11}
    # 50, 70 and 90, four times each: the best constant on validation is 70, the training median 50.
    assert [cell.value for cell in rows["constant.validation"][:4]] == ["13.33", "20.00", "0.00", "20.00"]
    assert [cell.value for cell in rows["constant.training"][:4]] == ["20.00", "0.00", "20.00", "40.00"]
    assert [rows[f"constant.{way}"][8].value for way in ("validation", "training")] == ["0.00", "-0.50"]
    sft = (1 + 1 + 1 + 2 + 10 + 10 + 12 + 8) / 12
    assert rows["sft.text"][8].value == f"{1 - sft / (40 / 3):.2f}"


def test_tables_of_the_distributions_by_hand(settings: Settings, tmp_path: Path) -> None:
    """Five numbers, three images, one of them without any probability: its row reads as the prior."""
    task = settings.task.model_copy(update={"low": 0, "high": 4, "many": 3, "few": 2})
    small = with_answer(settings.model_copy(update={"task": task}), balance=0.0, coverage=0.5)
    p = np.array([[0.1, 0.2, 0.4, 0.2, 0.1], [0, 0, 0, 0.3, 0.7], [0.2, 0.3, 0.1, 0.1, 0.1]])
    with np.errstate(divide="ignore"):
        log_p = {name: np.log(p) for name in ("base", "sft", "grpo")}
    answers = {name: [2.0, 4.0, 1.0] for name in ("base", "sft", "grpo")}
    made = evaluation_results(small, tmp_path, [2.0] * 4 + [1.0] * 2 + [4.0], [2.0, 4.0, 1.0], log_p, **answers)
    rows = {(model.name, group): cells for model, group, _, cells in tables.distribution_table(made)}
    assert list(rows) == [(m, g) for m in ("sft", "grpo") for g in ("all", "many", "medium", "few")]
    # many: F = 0.1 0.3 0.7 0.9 1 against 0 0 1 1 1. few: F(3) = 0.3. medium: q = p / 0.8, F = 2 5 6 7 8 eighths.
    crps = {"many": 0.2, "few": 0.09, "medium": (4 + 9 + 4 + 1) / 64}
    assert rows["sft", "many"][0].value == f"{crps['many']:.2f}"
    assert rows["sft", "few"][0].value == f"{crps['few']:.2f}"
    assert rows["sft", "medium"][0].value == f"{crps['medium']:.2f}"
    assert rows["sft", "all"][0].value == f"{sum(crps.values()) / 3:.2f}"
    # One row in a group is enough for 50 %; many's score is 0, and its interval the answer alone.
    assert (rows["sft", "many"][1].value, rows["sft", "many"][3].value) == ("100.00 %", "0.00")
    assert (rows["sft", "many"][2].value, rows["sft", "many"][4].value) == ("100.00 %", "2.00")  # own: 1 to 3
    mass = {model.name: [cell.value for cell in cells] for model, cells in tables.mass_table(made)}
    assert mass["sft"] == ["0.933", "0.800", "33.33 %"]
    model, name, value, reason = tables.choice_rows(made)[0]
    assert (model.name, name, value, reason) == ("sft", "balance", "0", "given")


def test_groups_without_calibration_rows_are_flagged(chosen: EvaluationResults) -> None:
    rows = {(model.name, group): cells for model, group, _, cells in tables.distribution_table(chosen)}
    assert [rows["sft", group][1].note for group in ("many", "medium", "few")] == ["not guaranteed"] * 3, "4 rows of 9"
    assert rows["sft", "few"][2].note == ""


def test_the_curve_has_both_sets_and_the_choice(settings: Settings, tmp_path: Path) -> None:
    made = evaluation_results(with_answer(settings, balance=0.33), tmp_path, TRAIN, TARGETS, **ANSWERS)
    rows = [(model.name, cells) for model, is_chosen, cells in tables.curve_rows(made) if is_chosen]
    assert [name for name, _ in rows] == ["sft", "grpo"]
    assert [cells[0].value for _, cells in rows] == ["0.33", "0.33"], "a given balance need not be on the grid"
    # Tune and test are the same images here.
    assert rows[0][1][1:4] == rows[0][1][5:]
    sft = made.answers("sft.balanced").metrics["groups"]
    assert rows[0][1][2].value == f"{sft['many']['mae']:.2f}"
    assert len(tables.curve_rows(made)) == 2 * 26


def test_empty_shot_group_is_shown_as_empty(settings: Settings, tmp_path: Path) -> None:
    alike = {name: [50.0, 71.0] for name in ("base", "sft", "grpo")}
    made = evaluation_results(settings, tmp_path, TRAIN, [50.0, 70.0], **alike)
    assert tables.table(made)[0][1][3].value == "–"
    assert tables.difference_rows(made)[0][2][3].value == "–"
    few = next(cells for _, group, _, cells in tables.distribution_table(made) if group == "few")
    assert {cell.value for cell in few} == {"–"}
    html = written(made, tmp_path)
    assert "No test images." in html
    assert Image.open(tmp_path / "report" / "errors.png").width > 1000


def test_model_text_is_escaped_in_the_report(results: EvaluationResults, tmp_path: Path) -> None:
    html = written(results, tmp_path)
    assert "<b>idea" not in html
    assert "unparseable: &#39;no &lt;b&gt;idea" in html
    assert "floored at 0.5" in html
    assert "farther from the true value" in html
    assert "The most frequent label of train has 24 times as many images as the rarest." in html
    assert "33.3 % are many-shot, 33.3 % are medium-shot, 33.3 % are few-shot." in " ".join(html.split())


def test_report_says_what_is_served_and_why(chosen: EvaluationResults, tmp_path: Path) -> None:
    html = " ".join(written(chosen, tmp_path).split())
    assert html.count('<span class="pill">served</span>') == 1
    assert re.search(r"SFT, median, balance 0.25 <span class=\"pill\">served", html)
    assert f"Served: <b>SFT, median, balance 0.25</b>. Reason: {chosen.served.reason}." in html
    assert "not guaranteed" in html
    for plot in FIGURES.values():
        assert html.count(f"<h3>{plot.title}</h3>") == 1


def test_figures_show_a_served_text_once(results: EvaluationResults, chosen: EvaluationResults) -> None:
    assert [one.title for one in shown(results)] == ["SFT, text", "CCC-GRPO, text"]
    assert [one.title for one in shown(chosen)][2] == "served: SFT, median, balance 0.25"


def test_worst_and_spread_rows_follow_the_served_errors(results: EvaluationResults) -> None:
    assert worst_rows(results, "many", 2) == [1, 0]  # errors 4, 5, 4, 3; ties: the earlier row first
    assert worst_rows(results, "few", 1) == [10]  # the unparseable one
    assert spread_rows(results, "few", 4) == [8, 11, 9, 10]  # errors 0, 2, 90, 1
    assert spread_rows(results, "few", 2) == [11, 10], "the quarters' middles: 1/4 and 3/4"
    assert spread_rows(results, "few", 9) == [8, 11, 9, 10], "no image twice"


def test_bins_of_the_figures_contain_every_label(settings: Settings, tmp_path: Path) -> None:
    for low, high, width, resolution in ((0, 100, 1, 1), (1, 228, 1, 1), (0.0, 9.9, 0.3, 0.1), (2, 8, 1, 1)):
        changes = {"low": low, "high": high, "bin_width": width, "resolution": resolution}
        task = settings.task.model_copy(update=changes)
        alike = {name: [low, high] for name in ("base", "sft", "grpo")}
        small = settings.model_copy(update={"task": task})
        limits = edges(evaluation_results(small, tmp_path, [low] * 9, [low, high], **alike))
        assert len(limits) - 1 <= plot_data.MAX_BINS
        assert limits[0] <= low - resolution / 2 + 1e-9
        assert limits[-1] >= high + resolution / 2 - 1e-9
        assert (np.diff(limits) > 0).all()


def lines(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_data_of_the_plots_match_hand_computed_values(chosen: EvaluationResults, tmp_path: Path) -> None:
    rows = {row["target"]: row for row in mae_per_bin(chosen) if row["test"]}
    assert len(rows) == 3
    bin_of_70 = next(row for target, row in rows.items() if abs(target - 70) < 2.1)  # type: ignore[operator]
    assert list(bin_of_70) == ["target", "train", "test", "base", "sft", "grpo", "served"]
    assert bin_of_70["train"] == 30
    assert bin_of_70["sft"] == pytest.approx(1.0)
    write_plot_data(chosen, tmp_path / "plots")
    found = lines(tmp_path / "plots" / "predictions.csv")
    assert [line["model"] for line in found] == [m for m in ("base", "sft", "grpo", "served") for _ in TARGETS]
    assert found[34] == {"model": "grpo", "id": "image-10", "shot": "few", "target": "90.0", "value": "", "error": ""}
    assert found[35]["error"] == "1.0"
    curve = lines(tmp_path / "plots" / "balance.csv")
    assert len(curve) == 2 * 2 * 25
    assert {(line["model"], line["split"]) for line in curve} == {
        (m, s) for m in ("sft", "grpo") for s in ("tune", "test")
    }
    at_zero = next(line for line in curve if (line["model"], line["split"], line["balance"]) == ("sft", "tune", "0.0"))
    assert (float(at_zero["many"]), float(at_zero["few"])) == (0.25, 10.0)


def test_error_towards_mean_is_positive_towards_the_training_mean(results: EvaluationResults) -> None:
    assert results.train.mean() == pytest.approx(55.16, abs=0.01)
    # Target 50, answer 54: towards the mean of 55. Target 90, answer 88: towards it; answer 91: away from it.
    shifts = error_towards_mean(results.answers("grpo.text"), results.train)
    np.testing.assert_allclose(shifts[[0, 9, 11]], [4, 2, -1])


def test_binned_mean_omits_bins_with_too_few_answers() -> None:
    targets, values = np.array([1.0] * 5 + [11.0] * 4), np.array([1.0, 2, 3, 4, 5] + [9.0] * 4)
    middle, mean = binned_mean(targets, values, np.array([0.0, 10.0, 20.0]))
    assert (middle.tolist(), mean.tolist()) == ([5.0], [3.0])
