"""Curves: sent to the tracker during training, and written to files that are the same in every run."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from components.shared.io.progress import Work
from components.shared.training.curves import CurveCallback, write_results
from tests.support.gauge_world import Curves

HISTORY: list[dict[str, Any]] = [
    {"loss": 2.0, "learning_rate": 0.1, "epoch": 0.1, "step": 5, "step_time": 0.3},
    {"val_mae": 20.0, "epoch": 0.1, "step": 5},
    {"loss": 1.0, "learning_rate": 0.05, "epoch": 0.2, "step": 10, "num_tokens": 900.0, "kl": None},
    {"train_runtime": 3.0, "train_samples_per_second": 9.0, "total_flos": 1e9, "train_loss": 1.5, "step": 10},
    {"loss": float("nan"), "epoch": 0.3, "step": 15},
    {"train_runtime": 4.0, "train_loss": 0.0, "step": 20},
]


def test_the_curve_has_a_row_per_step_and_a_column_per_metric(tmp_path: Path) -> None:
    write_results(tmp_path, HISTORY, {"steps": 15, "val_mae": 19.5, "nothing": None})
    with open(tmp_path / "curve.csv", encoding="utf-8", newline="") as file:
        lines = list(csv.reader(file))
    assert lines == [
        ["step", "kl", "learning_rate", "loss", "val_mae"],
        ["5", "", "0.1", "2.0", "20.0"],
        ["10", "", "0.05", "1.0", ""],
        ["15", "", "", "nan", ""],
    ]
    metrics = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert metrics == {"learning_rate": 0.05, "nothing": None, "steps": 15, "val_mae": 19.5}


def test_an_empty_history(tmp_path: Path) -> None:
    write_results(tmp_path, [], {"steps": 0})
    assert (tmp_path / "curve.csv").read_text(encoding="utf-8") == "step\n"
    assert json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8")) == {"steps": 0}


def test_the_tracker_gets_the_finite_figures_of_each_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    track = Curves()
    callback = CurveCallback(track, ("loss",))  # type: ignore[arg-type]
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    state, control = TrainerState(max_steps=20, is_world_process_zero=True), TrainerControl()
    callback.on_train_begin(arguments, state, control)
    state.global_step = 5
    callback.on_step_end(arguments, state, control)
    logs = {"loss": 2.0, "step_time": 0.1, "kl": float("nan"), "note": "text"}
    callback.on_log(arguments, state, control, logs=logs)  # type: ignore[arg-type]
    callback.on_log(arguments, state, control)
    callback.on_train_end(arguments, state, control)
    assert track.points == [(5, {"loss": 2.0, "step_time": 0.1}), (5, {})]
    assert "training: step 5 of 20, loss 2, " in capsys.readouterr().err


def test_training_prints_step_figures_and_time_left_without_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("components.shared.io.progress.LINE_SECONDS", 0.0)
    callback = CurveCallback(Curves(), ("loss", "val_mae"))  # type: ignore[arg-type]
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    state, control = TrainerState(max_steps=20, is_world_process_zero=True), TrainerControl()
    with Work("sft"):
        callback.on_train_begin(arguments, state, control)
        state.global_step = 5
        callback.on_step_end(arguments, state, control)
        callback.on_log(arguments, state, control, logs={"loss": 2.0, "val_mae": 3.25, "lr": 0.1})
    assert re.search(r"^sft: training: step 5 of 20, loss 2, val_mae 3.25, \d+ s left$", capsys.readouterr().err, re.M)


def test_other_ranks_print_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    callback = CurveCallback(None, ("loss",))
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    state, control = TrainerState(is_world_process_zero=False), TrainerControl()
    callback.on_train_begin(arguments, state, control)
    callback.on_step_end(arguments, state, control)
    callback.on_log(arguments, state, control, logs={"loss": 1.0})
    callback.on_train_end(arguments, state, control)
    assert capsys.readouterr() == ("", "")
