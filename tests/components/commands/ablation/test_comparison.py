"""Comparison and tables of the ablation, on hand-written errors."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.commands.ablation.answers import Answers
from components.commands.ablation.comparison import Images, Judged, compare
from components.commands.ablation.judging import Reading
from components.commands.ablation.studies import READINGS, STUDIES, WARM, Arm, Comparison, Study
from components.commands.ablation.table import markdown, write_tables
from components.commands.ablation.training import changed
from components.settings import Settings
from components.shared.scoring.choice import Point
from components.shared.scoring.shots import GROUPS

SHOTS = np.array(["many", "many", "medium", "few"])
STUDY = Study(
    "Ablation",
    "Two arms",
    {"ccc": Arm("CCC-GRPO", {}), "sft": Arm("SFT continued", None, "ccc")},
    ("text", "auto", "equal"),
    (
        Comparison("All by greedy text", (("ccc.text", "warm.text"), ("sft.text", "warm.text"))),
        Comparison("Against text", (("ccc.auto", "ccc.text"),)),
        Comparison("At equal cost", (("ccc.equal", "warm.equal"), ("sft.equal", "warm.equal"))),
    ),
)
# Absolute errors on the four images.
ERRORS: dict[int, dict[str, list[float]]] = {
    0: {
        "warm.text": [2, 2, 0, 10],
        "ccc.text": [1, 1, 1, 3],
        "sft.text": [4, 2, 2, 10],
        "warm.auto": [3, 3, 0, 4],
        "ccc.auto": [2, 2, 1, 2],
        "sft.auto": [2, 2, 1, 2],
        "warm.equal": [1, 1, 1, 4],
        "ccc.equal": [1, 1, 1, 2],
    },
    1: {
        "warm.text": [2, 4, 0, 20],
        "ccc.text": [0, 0, 0, 70],
        "sft.text": [5, 7, 2, 20],
        "warm.auto": [3, 5, 0, 6],
        "ccc.auto": [2, 2, 1, 4],
        "sft.auto": [2, 2, 1, 4],
        "warm.equal": [3, 3, 1, 6],
    },
}
# Label-weighted MAE and many-shot bound on tune; the tolerance is 0.5.
TUNE = {"warm.auto": (5.0, 0.2), "ccc.auto": (3.0, 0.9), "sft.auto": (4.0, 0.4)}


def judged(seed: int) -> Judged:
    readings: Judged = {}
    for name, errors in ERRORS[seed].items():
        mae, bound = TUNE.get(name, (None, None))
        point = None if mae is None else Point(0.5, mae + seed, None, None, bound)
        readings[name] = Reading(np.array(errors, float), {"sd ratio": 0.5 + seed / 10}, point)
    return readings


def images(shots: np.ndarray) -> Images:
    constants = {"best constant, val 20": 20.0, "training median, 10": 10.0}
    return Images(np.array([10.0, 14, 30, 60]), shots, None, constants)


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    found = compare(STUDY, {seed: judged(seed) for seed in ERRORS}, images(SHOTS), 0.5)
    times = {"steps": {arm: [200, 200] for arm in (WARM, "ccc", "sft")}}
    return found | times | {"seconds": {arm: [100.0, 110.0] for arm in times["steps"]}, "split": "test"}


@pytest.fixture
def lines(result: dict[str, Any], settings: Settings, tmp_path: Path) -> list[str]:
    write_tables(tmp_path / "results" / "ablation", settings, STUDY, result)
    assert json.loads((tmp_path / "results" / "ablation.json").read_text(encoding="utf-8"))["seeds"] == [0, 1]
    return (tmp_path / "results" / "ablation.md").read_text(encoding="utf-8").splitlines()


def rows_below(lines: list[str], title: str) -> dict[str, list[str]]:
    """The rows of the table below a heading, by their first cell."""
    start = lines.index(f"## {title}") + 1
    end = next((i for i in range(start, len(lines)) if lines[i].startswith("## ")), len(lines))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start:end] if line.startswith("|")]
    return {row[0]: row[1:] for row in rows}


def test_mae_of_each_group_and_seed(result: dict[str, Any]) -> None:
    readings = result["readings"]
    assert readings["warm.text"]["mae"] == {"all": [3.5, 6.5], "many": [2, 3], "medium": [0, 0], "few": [10, 20]}
    assert readings["ccc.text"]["mae"]["all"] == [1.5, 17.5]
    assert readings["ccc.equal"]["mae"]["few"] == [2, None]
    assert readings["sft.equal"] == {
        "mae": {group: [None, None] for group in GROUPS},
        "figures": {},
    }
    assert readings["warm.text"]["figures"] == {"sd ratio": [0.5, 0.6]}
    assert result["sizes"] == {"all": 4, "many": 2, "medium": 1, "few": 1}


def test_differences_are_paired_by_seed_and_image(result: dict[str, Any]) -> None:
    text = result["differences"]["ccc.text - warm.text"]
    assert [text[group]["difference"] for group in ("all", "many", "medium", "few")] == [4.5, -2, 0.5, 21.5]
    assert text["few"]["per_seed"] == [-7, 50]
    assert text["few"]["ci"] is None, "one image says nothing about others"
    assert result["differences"]["ccc.auto - ccc.text"]["many"]["per_seed"] == [1, 2]
    # Only seed 0 reached the many-shot MAE with ccc, no seed with sft.
    equal = result["differences"]["ccc.equal - warm.equal"]["all"]
    assert (equal["seeds"], equal["difference"]) == (1, -0.5)
    assert result["differences"]["sft.equal - warm.equal"]["all"]["seeds"] == 0


def test_tables_have_means_and_ranges_over_seeds(lines: list[str]) -> None:
    assert lines[0] == "# Ablation: gauges"
    assert "Two arms. 2 seeds (0, 1); test split, 4 images (many 2, medium 1, few 1). MAE in %" in lines[2]
    text = rows_below(lines, "Greedy text")
    assert text[""] == ["MAE all", "many", "medium", "few", "skill", "sd ratio"]
    # The best constant, 20, is wrong by 10, 6, 10 and 40: 16.5 on average.
    assert text["warm start"] == [
        "5.00 (3.50 to 6.50)", "2.50 (2.00 to 3.00)", "0.00", "15.00 (10.00 to 20.00)", "0.70 (0.61 to 0.79)",
        "0.55 (0.50 to 0.60)",
    ]  # fmt: skip
    assert text["best constant, val 20"] == ["16.50", "8.00", "10.00", "40.00", "0.00", "–"]
    assert text["training median, 10"] == ["18.50", "2.00", "20.00", "50.00", "-0.12", "–"]
    equal = rows_below(lines, "Median at equal many-shot MAE")
    assert equal["CCC-GRPO"][3] == "2.00, 1 seed"
    assert equal["SFT continued"][0] == "not reached"
    assert "| CCC-GRPO | 200 | 105 (100 to 110) |" in lines


def test_tables_list_what_is_worse_and_where_no_gain_is_shown(lines: list[str], result: dict[str, Any]) -> None:
    text = rows_below(lines, "All by greedy text")
    assert text["CCC-GRPO − warm start"][3] == "+21.50"
    low, high = result["differences"]["sft.text - warm.text"]["many"]["ci"]
    assert text["SFT continued − warm start"][1] == f"+2.00 [{low:+.2f}, {high:+.2f}]"
    start = lines.index("## All by greedy text")
    verdict = next(line for line in lines[start:] if "interval" in line and not line.startswith("|"))
    assert "No difference shown on all images, the interval contains 0: CCC-GRPO − warm start (+4.50)" in verdict
    assert "CCC-GRPO, median with auto − CCC-GRPO, greedy text" in rows_below(lines, "Against text")
    equal = rows_below(lines, "At equal cost")
    assert equal["CCC-GRPO − warm start"][0].endswith(", 1 seed")
    assert equal["SFT continued − warm start"] == ["not reached"] * 4


def test_a_difference_whose_interval_is_above_0_is_listed_as_worse(settings: Settings, result: dict[str, Any]) -> None:
    worse = {"n": 4, "seeds": 2, "difference": 0.2, "ci": [0.1, 0.3], "df": 1.0, "per_seed": [0.2, 0.2]}
    changes = {"sft.text - warm.text": {**result["differences"]["sft.text - warm.text"], "few": worse, "all": worse}}
    facts = {"date": "2026-01-02", "machine": "m", "python": "3.11.0", "versions": {"torch": "9"}}
    known = result | {"differences": result["differences"] | changes, "machine": facts}
    text = markdown(settings, STUDY, known)
    assert "Worse, the whole interval above 0: SFT continued − warm start on all (+0.20), few (+0.20)." in text
    assert text.rstrip().endswith("2026-01-02; m; Python 3.11.0, torch 9.")


def test_the_choice_uses_tune_alone_and_keeps_the_tolerance(lines: list[str]) -> None:
    choice = rows_below(lines, "Choice on tune")
    assert list(choice)[1:] == [
        "---",
        *(f"{arm}, median with auto" for arm in ("CCC-GRPO", "SFT continued", "warm start")),
    ]
    assert choice["CCC-GRPO, median with auto"] == ["3.50 (3.00 to 4.00)", "0 of 2"]
    (chosen,) = [line for line in lines if line.startswith("Lowest among")]
    assert "**SFT continued, median with auto** (4.50)" in chosen


def test_empty_shot_group_is_marked_empty(settings: Settings) -> None:
    shots = np.array(["many", "many", "medium", "medium"])
    facts = {"date": "", "machine": "", "python": "", "versions": {}}
    known = compare(STUDY, {0: judged(0)}, images(shots), 0.5) | {"split": "test", "machine": facts}
    arms = (WARM, "ccc", "sft")
    known |= {"steps": {arm: [1] for arm in arms}, "seconds": {arm: [1.0] for arm in arms}}
    lines = markdown(settings, STUDY, known).splitlines()
    assert "1 seed (0); test split, 4 images (many 2, medium 2, few 0)" in lines[2]
    assert rows_below(lines, "Greedy text")["warm start"][3] == "empty"
    assert rows_below(lines, "All by greedy text")["CCC-GRPO − warm start"][3] == "empty"


def test_finer_labels_get_more_digits(settings: Settings, result: dict[str, Any]) -> None:
    facts = {"date": "", "machine": "", "python": "", "versions": {}}
    tenths = settings.model_copy(update={"task": settings.task.model_copy(update={"resolution": 0.1})})
    assert "| CCC-GRPO − warm start | +4.500 " in markdown(tenths, STUDY, result | {"machine": facts})


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_names_existing_arms_and_readings(name: str, settings: Settings) -> None:
    study = STUDIES[name](settings)
    compared = [side.partition(".") for c in study.comparisons for pair in c.pairs for side in pair]
    assert {arm for arm, _, _ in compared} == {WARM, *study.arms}
    assert {reading for _, _, reading in compared} <= set(study.readings) <= set(READINGS)
    assert all(study.arms[arm.as_long_as].as_long_as is None for arm in study.arms.values() if arm.as_long_as)
    sections = [changed(settings, arm.grpo).grpo for arm in study.arms.values() if arm.grpo is not None]
    assert len({repr(section) for section in sections}) == len(sections), "no two arms are the same"


def test_claim_asks_the_required_differences(settings: Settings) -> None:
    study = STUDIES["claim"](settings)
    pairs = {pair for comparison in study.comparisons for pair in comparison.pairs}
    for arm in study.arms:
        assert {(f"{arm}.auto", "warm.auto"), (f"{arm}.auto", "ccc.text"), (f"{arm}.equal", "warm.equal")} <= pairs
    assert ("warm.auto", "ccc.text") in pairs


def test_answers_survive_their_file(tmp_path: Path) -> None:
    given = Answers(np.array(["a", "bc"]), np.array([1.0, 2.5]), np.array([np.nan, 2.0]), np.array([[-1.5], [-np.inf]]))
    given.write(tmp_path / "answers.npz")
    read = Answers.read(tmp_path / "answers.npz")
    assert read.ids.tolist() == ["a", "bc"]
    assert np.array_equal(read.text, given.text, equal_nan=True)
    assert np.array_equal(read.log_p, given.log_p)
