"""A warm start that has learned nothing is an error that keeps its weights; patience counts once it has learned."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from components.errors import ConcordError
from components.sft.step import run
from components.shared.rows.validation import tune_table
from tests.support import gray_world
from tests.support.gauge_world import Curves, curve, ingested, write_params
from tests.support.raw_folder import content

PLATEAU = {"max_steps": 12, "eval_every": 2, "patience": 2, "lr": 1e-9}
GRAY: dict[str, Any] = {"task": gray_world.SECTIONS["task"], "model": gray_world.SECTIONS["model"]}
LEARNS: dict[str, Any] = {
    "max_steps": 400, "eval_every": 4, "eval_rows": 16, "batch_size": 16, "lr": 0.003, "patience": 2,
}  # fmt: skip


def train(ingest: Path, folder: Path, stop_after: int | None = None, **sections: Any) -> tuple[Path, Curves]:
    """Runs the step; a second call in the same folder resumes."""
    settings = write_params(folder / "params.yaml", **sections)
    track, out = Curves(stop_after), folder / "sft"
    run(settings, track, ingest=ingest, validate=ingest, out=out, state=folder / "state")  # type: ignore[arg-type]
    return out, track


@pytest.fixture(scope="module")
def gauges(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ingested(tmp_path_factory.mktemp("gauges"))


@pytest.fixture(scope="module")
def gray(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gray images, which the tiny model reads after some dozens of steps."""
    return gray_world.write_rows(tmp_path_factory.mktemp("gray") / "ingest")


def test_a_plateau_is_trained_to_the_end_and_is_then_an_error_that_keeps_the_weights(
    gauges: Path, tmp_path: Path
) -> None:
    """Without an answer better than the best constant, patience is not used up; `warning` trains nothing again."""
    with pytest.raises(ConcordError, match=r"sft learned nothing.*after 12 steps") as error:
        train(gauges, tmp_path, sft={**PLATEAU, "no_skill": "error"})
    assert not (tmp_path / "sft").exists()
    (best,) = (tmp_path / "state").glob("*/checkpoint-2")
    assert str(best) in str(error.value)
    assert "no_skill: warning" in str(error.value)
    kept = load_file(best / "model.safetensors")
    out, track = train(gauges, tmp_path, sft={**PLATEAU, "no_skill": "warning"})
    assert track.steps("loss") == []
    written = load_file(out / "model.safetensors")
    assert written.keys() == kept.keys()
    assert all(torch.equal(written[name], value) for name, value in kept.items())
    assert list(curve(out)) == [2, 4, 6, 8, 10, 12]


def test_skill_is_measured_against_the_median_of_the_validation_images(gauges: Path, tmp_path: Path) -> None:
    out, _ = train(gauges, tmp_path, sft={**PLATEAU, "max_steps": 2})
    figures = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    targets = tune_table(gauges)["target"].to_numpy()[:10]
    constant = np.abs(targets - np.median(targets)).mean()
    assert figures["val_constant_mae"] == pytest.approx(constant)
    assert figures["val_skill"] == pytest.approx(1 - figures["val_mae"] / constant)
    assert figures["val_skill_low"] < figures["val_skill"] <= 0, "no answer is valid, so each is the worst possible"


def test_patience_counts_once_something_is_learned(gray: Path, tmp_path: Path) -> None:
    """Two evaluations without a better MAE end the training, long before its last step."""
    out, track = train(gray, tmp_path, **GRAY, sft={**LEARNS, "no_skill": "error"})
    lines = {step: line for step, line in curve(out).items() if "val_mae" in line}
    best = min(lines, key=lambda step: (lines[step]["val_mae"], step))
    assert max(lines) == best + 2 * LEARNS["eval_every"] < LEARNS["max_steps"]
    assert lines[best]["val_skill_low"] > 0
    assert lines[best]["val_skill"] > 0.5
    before = content(out)
    out.rename(tmp_path / "elsewhere")
    again, track = train(gray, tmp_path, **GRAY, sft={**LEARNS, "no_skill": "error"})
    assert track.steps("loss") == [], "a run that was stopped after its last step trains no further"
    assert content(again) == before


def test_resumed_run_keeps_its_used_patience(gray: Path, tmp_path: Path) -> None:
    whole, _ = train(gray, tmp_path / "whole", **GRAY, sft=LEARNS)
    last = max(curve(whole))
    with pytest.raises(KeyboardInterrupt):
        train(gray, tmp_path / "stopped", stop_after=last - 1, **GRAY, sft=LEARNS)
    out, track = train(gray, tmp_path / "stopped", **GRAY, sft=LEARNS)
    assert track.steps("val_mae") == [last]
    assert content(out) == content(whole)
