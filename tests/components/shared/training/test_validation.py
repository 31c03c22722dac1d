"""Validation during training: figures by hand, the choice of the balance, and the figures of the kept checkpoint."""

from pathlib import Path

import numpy as np
import pytest
from transformers import TrainerState

from components.settings import load_settings
from components.shared.model.answer_tree import build_tree
from components.shared.training.validation import TaskNumbers, kept_figures, text_figures, validation_figures

ROOT = Path(__file__).parents[4]
PRIOR = np.array([0.9, 0.09, 0.01])
NUMBERS = TaskNumbers(
    build_tree(np.array([0.0, 1.0, 2.0]), [[1], [2], [3]]), np.log(PRIOR), np.array(["many", "medium", "few"])
)


def logs(*rows: list[float]) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(np.array(rows))


def test_figures_by_hand() -> None:
    """The image of a 0 is sure. That of a 2 has its median at 2 if (0.8 / 0.9^b + 0.1 / 0.09^b) / (0.1 / 0.01^b) < 1.

    It is 1.18 at b = 0.5 and 0.97 at 0.55.
    """
    log_p = logs([0.9, 0, 0], [0.8, 0.1, 0.1])
    figures = validation_figures(NUMBERS, log_p, np.array([0.0, 2.0]), 0.0)
    assert figures["val_balance"] == 0.55
    assert figures["val_score"] == 0
    assert {name: figures[f"val_mae/{name}"] for name in ("all", "many", "few")} == {"all": 0, "many": 0, "few": 0}
    assert "val_mae/medium" not in figures, "no image is medium"
    assert figures["val_skill"] == 1
    # CRPS of the image of a 2, over the thresholds 0, 1 and 2: F is 0.8, 0.9, 1 and should be 0, 0, 1.
    assert figures["val_crps"] == pytest.approx((0.8**2 + 0.9**2) / 2)
    assert figures["val_coverage"] == 1
    assert figures["val_mass"] == pytest.approx(0.95)


def test_every_label_weighs_the_same() -> None:
    """Three images of 0 are read right with a small balance only, one image of 2 with a large one only."""
    log_p = logs([0.7, 0.05, 0.25], [0.7, 0.05, 0.25], [0.7, 0.05, 0.25], [0.98, 0.01, 0.01])
    figures = validation_figures(NUMBERS, log_p, np.array([0.0, 0.0, 0.0, 2.0]), 0.0)
    assert figures["val_score"] == pytest.approx(1.0), "either all of 0 or all of 2 are 2 off"
    assert figures["val_balance"] == 0
    assert figures["val_skill"] == 0, "the best constant is 0, and wrong by 2 on the last image"


def test_a_trained_balance_is_taken_into_account() -> None:
    """A model that lacks half of the prior, and one that has it all, answer the same at the same balance."""
    log_p, targets = logs([0.5, 0.3, 0.2], [0.8, 0.1, 0.1], [0.6, 0.3, 0.1]), np.array([0.0, 2.0, 1.0])
    whole = validation_figures(NUMBERS, log_p, targets, 0.0)
    without = log_p - 0.5 * np.log(PRIOR)
    half = validation_figures(NUMBERS, without - np.log(np.exp(without).sum(axis=1, keepdims=True)), targets, 0.5)
    for name in ("val_score", "val_balance", "val_mae/all", "val_mae/few"):
        assert half[name] == pytest.approx(whole[name]), name


def test_coverage_counts_targets_in_the_central_interval() -> None:
    log_p = logs([0.04, 0.92, 0.04], [0.04, 0.92, 0.04])
    assert validation_figures(NUMBERS, log_p, np.array([1.0, 2.0]), 0.0)["val_coverage"] == 0.5


def test_the_kept_figures_are_those_of_the_best_step() -> None:
    state = TrainerState(best_global_step=2)
    state.log_history = [
        {"step": 2, "loss": 1.0},
        {"step": 2, "val_score": 3.0, "val_crps": 1.0, "epoch": 0.5},
        {"step": 4, "val_score": 4.0, "val_crps": 0.5},
    ]
    assert kept_figures(state) == {"val_score": 3.0, "val_crps": 1.0, "best_step": 2}
    assert kept_figures(TrainerState()) == {}


def test_text_is_scored_with_every_label_weighing_the_same() -> None:
    task = load_settings(ROOT / "params.yaml").task.model_copy(update={"low": 0.0, "high": 2.0})
    targets, answers = np.array([0.0, 0.0, 0.0, 2.0]), np.array([0.0, 1.0, np.nan, 1.0])
    figures = text_figures(NUMBERS, task, answers, targets)
    assert figures["val_score"] == pytest.approx((1.0 + 1.0) / 2), "an invalid answer to 0 is 2 off"
    assert figures["val_text_mae/all"] == pytest.approx(1.0)
