"""The tables and sentences of the report."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from components.evaluate.results import Answers, EvaluationResults, ModelResults
from components.shared.reporting.distribution_metrics import INTERVALS
from components.shared.scoring.choice import Choice, Point
from components.shared.scoring.shots import GROUPS

Figure = tuple[float | None, list[float] | None]  # a value and its interval


@dataclass(frozen=True)
class Cell:
    """One cell of a table: the value, its interval, whether it is the best of its column, and how it is shown."""

    value: str
    interval: str = ""
    best: bool = False
    note: str = ""
    kind: str = ""


NONE = Cell("–")


def all_answers(results: EvaluationResults) -> list[Answers]:
    """Every model's answers, in every way that its numbers are read, and the constants."""
    return [*(answers for model in results.models for answers in model.answers.values()), *results.constants]


def table(results: EvaluationResults) -> list[tuple[Answers, list[Cell]]]:
    """One row per model and way: MAE by group, GM by group, skill, sd ratio, share of unparseable answers."""
    rows = all_answers(results)
    columns: list[list[Cell]] = []
    for metric in ("mae", "gm"):
        for group in GROUPS:
            groups = [answers.metrics["groups"][group] for answers in rows]
            columns.append(_column([(g[metric], g[f"{metric}_ci"]) for g in groups], lambda value: value))
    skills = [(answers.metrics["skill"], answers.metrics["skill_ci"]) for answers in rows]
    columns.append(_column(skills, lambda value: -value))
    ratios = [(answers.metrics["sd_ratio"], answers.metrics["sd_ratio_ci"]) for answers in rows]
    columns.append(_column(ratios, lambda value: abs(value - 1)))
    shares = [_percent(answers.metrics["unparseable"], answers.metrics["unparseable_ci"]) for answers in rows]
    columns.append(_column(shares, lambda value: value, unit=" %"))
    return [(answers, [column[row] for column in columns]) for row, answers in enumerate(rows)]


def _column(figures: Sequence[Figure], badness: Callable[[float], float], unit: str = "") -> list[Cell]:
    """Cells of a column; all cells with the smallest badness are marked as best."""
    known = [badness(value) for value, _ in figures if value is not None]
    least = min(known) if known else None
    return [_cell(value, ci, unit, value is not None and badness(value) == least) for value, ci in figures]


def _cell(value: float | None, ci: list[float] | None, unit: str = "", best: bool = False) -> Cell:
    if value is None:
        return NONE
    return Cell(f"{value:.2f}{unit}", f"{ci[0]:.2f}–{ci[1]:.2f}" if ci else "", best)


def _percent(value: float | None, ci: list[float] | None) -> Figure:
    return (None if value is None else 100 * value, ci and [100 * bound for bound in ci])


def distribution_table(results: EvaluationResults) -> list[tuple[ModelResults, str, int, list[Cell]]]:
    """One row per trained model and group: CRPS; coverage, median width and interval score, conformal and own.

    Returns:
        Model, group, number of images, cells.
    """
    rows = []
    for model, known in results.trained:
        for group in GROUPS:
            found = known.metrics["groups"][group]
            cells = [_cell(found["crps"], found["crps_ci"])]
            for key in ("coverage", "width", "score"):
                for kind in INTERVALS:
                    value, ci = found[kind][key], found[kind][f"{key}_ci"]
                    cell = _cell(*_percent(value, ci), unit=" %") if key == "coverage" else _cell(value, ci)
                    promised = kind == "own" or found[kind]["guaranteed"] or key != "coverage"
                    cells.append(cell if promised else Cell(cell.value, cell.interval, note="not guaranteed"))
            rows.append((model, group, int(found["n"]), cells))
    return rows


def mass_table(results: EvaluationResults) -> list[tuple[ModelResults, list[Cell]]]:
    """One row per trained model: mean and least mass, and the share of images whose mass is below 0.9."""
    rows = []
    for model, known in results.trained:
        mass = known.metrics["mass"]
        low = _percent(mass["below_0.9"], mass["below_0.9_ci"])
        mean = Cell(f"{mass['mean']:.3f}", "–".join(f"{bound:.3f}" for bound in mass["mean_ci"] or []))
        rows.append((model, [mean, Cell(f"{mass['least']:.3f}"), _cell(*low, unit=" %")]))
    return rows


def choice_rows(results: EvaluationResults) -> list[tuple[ModelResults, str, str, str]]:
    """Model, what was chosen, its value, and the reason."""
    rows = []
    for model, known in results.trained:
        for name, choice in (("balance", known.rule.balance), ("stretch", known.stretch)):
            rows.append((model, name, f"{choice.value:g}", _reason(choice)))
    return rows


def _reason(choice: Choice) -> str:
    """The reason without the value, which it may begin with."""
    return choice.reason.removeprefix(f"{choice.value:g}: ")


def curve_rows(results: EvaluationResults) -> list[tuple[ModelResults, bool, list[Cell]]]:
    """Model, whether it is the choice, and each balance: MAE, many, few, bound on tune; the first three on test."""
    rows = []
    for model, known in results.trained:
        for tune, test in zip(known.rule.balance.curve, known.test_curve, strict=True):
            cells = [Cell(f"{tune.value:g}"), *_point(tune), _cell(tune.bound, None), *_point(test)]
            rows.append((model, tune.value == known.rule.balance.value, cells))
    return rows


def _point(point: Point) -> list[Cell]:
    return [_cell(value, None) for value in (point.mae, point.many, point.few)]


def difference_rows(results: EvaluationResults) -> list[tuple[str, str, list[Cell]]]:
    """Each comparison: the titles of both, and the paired difference of MAE in each group."""
    rows = []
    for name, groups in results.differences.items():
        ours, theirs = _both(results, name)
        rows.append((ours.title, theirs.title, [_difference(groups[group]) for group in GROUPS]))
    return rows


def _difference(paired: dict[str, Any]) -> Cell:
    if paired["difference"] is None:
        return NONE
    if paired["ci"] is None:
        return Cell(f"{paired['difference']:+.2f}")
    low, high = paired["ci"]
    word, kind = {"better": ("better", "gain"), "worse": ("worse", "loss"), "open": ("", "")}[_outcome(paired)]
    return Cell(f"{paired['difference']:+.2f}", f"{low:+.2f} to {high:+.2f}", note=word, kind=kind)


def _outcome(paired: dict[str, Any]) -> str:
    """`better`, `worse`, or `open` if the interval contains 0, or none is known."""
    low, high = paired["ci"] or (0.0, 0.0)
    return "better" if high < 0 else "worse" if low > 0 else "open"


def verdict(results: EvaluationResults) -> list[str]:
    """Sentences that say where the first pair's first is better and where it is worse, and every other loss."""
    name, groups = next(iter(results.differences.items()))
    ours, theirs = _both(results, name)
    starts = {
        "better": f"{ours.title} is better than {theirs.title} on",
        "worse": f"{ours.title} is worse than {theirs.title} on",
        "open": "No difference is shown on",
    }
    found = {outcome: _groups(results, groups, outcome) for outcome in starts}
    sentences = [f"{start} {', '.join(found[outcome])}." for outcome, start in starts.items() if found[outcome]]
    return sentences + _shape_losses(ours, theirs) + _other_losses(results)


def _groups(results: EvaluationResults, groups: dict[str, dict[str, Any]], outcome: str) -> list[str]:
    unit = f" {results.settings.task.unit}".rstrip()
    return [
        f"{group} ({paired['difference']:+.2f}{unit})"
        for group, paired in groups.items()
        if paired["difference"] is not None and _outcome(paired) == outcome
    ]


def _shape_losses(ours: Answers, theirs: Answers) -> list[str]:
    sentences = []
    a, b = ours.metrics["sd_ratio"], theirs.metrics["sd_ratio"]
    if a is not None and b is not None and abs(a - 1) > abs(b - 1):
        sentences.append(
            f"The spread of its answers is farther from that of the true values: sd ratio {a:.2f} against {b:.2f}."
        )
    a, b = ours.metrics["unparseable"], theirs.metrics["unparseable"]
    if a > b:
        sentences.append(f"More of its answers are unparseable: {100 * a:.2f} % against {100 * b:.2f} %.")
    return sentences


def _other_losses(results: EvaluationResults) -> list[str]:
    sentences = []
    for name, groups in list(results.differences.items())[1:]:
        ours, theirs = _both(results, name)
        if lost := _groups(results, groups, "worse"):
            sentences.append(f"{ours.title} is worse than {theirs.title} on {', '.join(lost)}.")
    return sentences


def _both(results: EvaluationResults, name: str) -> tuple[Answers, Answers]:
    ours, theirs = name.split(" - ")
    return results.answers(ours), results.answers(theirs)
