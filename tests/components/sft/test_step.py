"""The sft step: early stopping, best weights, no times in its outputs, and resuming from checkpoints."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from components.errors import ConcordError
from components.settings import Settings
from components.sft.step import run
from components.shared.model.adapter import ADAPTER, WEIGHTS
from components.shared.model.answer_tree import answer_tree
from components.shared.model.generation import generate_answers
from components.shared.model.loading import base_model, load
from components.shared.model.number_reader import collect_log_probabilities
from components.shared.model.validation_file import read_validation
from components.shared.rows.rows import read_rows, read_table, slice_rows
from components.shared.rows.validation import tune_mask
from components.shared.scoring.answers import parse_answers
from components.shared.scoring.errors import Predictions
from tests.support.gauge_world import LORA, Curves, curve, ingested, write_params
from tests.support.raw_folder import content


@pytest.fixture(scope="module")
def ingest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ingested(tmp_path_factory.mktemp("world"))


def train(ingest: Path, folder: Path, stop_after: int | None = None, **sections: Any) -> tuple[Path, Curves]:
    """Runs the step with small settings; its checkpoints are in `folder`, so that a second call resumes."""
    settings = write_params(folder / "params.yaml", **sections)
    track, out = Curves(stop_after), folder / "sft"
    run(settings, track, ingest=ingest, validate=ingest, out=out, state=folder / "state")  # type: ignore[arg-type]
    return out, track


def metrics(out: Path) -> dict[str, float]:
    values: dict[str, float] = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    return values


def val_mae(settings: Settings, ingest: Path, model: Path, rows: int) -> float:
    """MAE on the first `rows` images of the tune half, computed independently of the trainer."""
    whole = next(iter(read_rows(ingest, "val")))
    batch = whole.filter(pa.array(tune_mask(ingest))).slice(0, rows)
    texts = [text for _, part in generate_answers(*load(model, settings.model), [batch], 4, 8) for text in part]
    values, targets = parse_answers(texts, 0, 100), batch.column("target").to_numpy()
    return float(Predictions(targets, values, targets.astype(str), 0, 100, 1).errors.mean())


@pytest.fixture(scope="module")
def trained(ingest: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Curves]:
    """Trains thirty steps with an evaluation every ten."""
    return train(ingest, tmp_path_factory.mktemp("trained"), sft={"max_steps": 30, "eval_every": 10, "lr": 0.004})


def test_loss_falls_and_token_accuracy_rises(trained: tuple[Path, Curves]) -> None:
    lines = curve(trained[0])
    assert list(lines) == [10, 20, 30]
    assert lines[30]["loss"] < 0.6 * lines[10]["loss"]
    assert lines[30]["mean_token_accuracy"] > lines[10]["mean_token_accuracy"]
    for line in lines.values():
        assert {"loss", "val_mae", "val_unparseable", "val_sd_ratio", "learning_rate", "grad_norm"} <= line.keys()


def test_output_has_the_weights_of_the_best_evaluation(trained: tuple[Path, Curves], ingest: Path) -> None:
    out, _ = trained
    maes = {step: line["val_mae"] for step, line in curve(out).items()}
    assert metrics(out)["val_mae"] == min(maes.values())
    settings = write_params(out.parent / "params.yaml", sft={"max_steps": 30, "eval_every": 10, "lr": 0.004})
    assert val_mae(settings, ingest, out, settings.sft.eval_rows) == pytest.approx(min(maes.values()), abs=1e-9)


def test_tracker_gets_the_curves_and_times_and_files_have_no_times(trained: tuple[Path, Curves]) -> None:
    out, track = trained
    assert track.steps("val_mae") == track.steps("loss") == [10, 20, 30]
    assert any("runtime" in name for _, point in track.points for name in point)
    assert track.steps("data_wait_share") == [10, 20, 30]
    assert all(0 < point.get("data_wait_share", 0.5) < 1 for _, point in track.points)
    names = {name for line in curve(out).values() for name in line} | metrics(out).keys()
    assert not [name for name in names if any(word in name for word in ("time", "second", "flos", "wait"))]
    assert (out / "curve.csv").read_text(encoding="utf-8").isascii()
    assert metrics(out)["steps"] == 30


def test_output_is_a_model_with_metrics_and_curve(trained: tuple[Path, Curves]) -> None:
    names = {path.name for path in trained[0].iterdir()}
    assert {"curve.csv", "metrics.json", "model.safetensors", "tokenizer.json", "processor_config.json"} <= names
    assert {Path(name).suffix for name in names} == {".csv", ".json", ".safetensors", ".jinja", ".parquet"}


def test_output_has_the_distributions_of_all_validation_images(trained: tuple[Path, Curves], ingest: Path) -> None:
    ids, known = read_validation(trained[0])
    val = read_table(ingest, "val", ["id", "target"])
    assert ids == val["id"].to_pylist()
    assert known.targets.tolist() == val["target"].to_pylist()
    assert known.tune.tolist() == tune_mask(ingest).tolist()
    assert known.trained == 0
    assert known.counts.sum() == read_table(ingest, "train", ["id"]).num_rows
    settings = write_params(trained[0].parent / "params.yaml", sft={"max_steps": 30, "eval_every": 10, "lr": 0.004})
    model, processor = load(trained[0], settings.model)
    texts = [text for _, part in generate_answers(model, processor, read_rows(ingest, "val"), 4, 8) for text in part]
    np.testing.assert_array_equal(known.warm_start, parse_answers(texts, 0, 100))
    rows = slice_rows(read_rows(ingest, "val"), 0, 3)
    _, log_p = collect_log_probabilities(model, processor, rows, answer_tree(processor, settings.task), 1)
    np.testing.assert_allclose(known.log_p[:3], log_p, atol=1e-3)


def test_same_seed_gives_the_same_bytes(ingest: Path, tmp_path: Path) -> None:
    one, _ = train(ingest, tmp_path / "one")
    again, _ = train(ingest, tmp_path / "again")
    other, _ = train(ingest, tmp_path / "other", sft={"seed": 1})
    assert content(one) == content(again)
    assert content(one)["model.safetensors"] != content(other)["model.safetensors"]


def test_loader_workers_do_not_change_the_output(ingest: Path, tmp_path: Path) -> None:
    """Not even if the run is stopped and resumed with another number of workers."""
    without, _ = train(ingest, tmp_path / "without", **PLAIN)
    with_workers, _ = train(ingest, tmp_path / "with", **PLAIN, launcher={"loader_workers": 2})
    assert content(with_workers) == content(without)
    with pytest.raises(KeyboardInterrupt):
        train(ingest, tmp_path / "stopped", stop_after=6, **PLAIN, launcher={"loader_workers": 1})
    resumed, track = train(ingest, tmp_path / "stopped", **PLAIN)
    assert min(track.steps("loss")) > 3, "it resumed from a checkpoint"
    assert content(resumed) == content(without)


PLAIN: dict[str, Any] = {"sft": {"max_steps": 8, "eval_every": 3}}
ADAPTED: dict[str, Any] = {
    "model": {"lora": LORA, "freeze_vision": True},
    "sft": {"max_steps": 7, "eval_every": 3, "accumulation": 2, "batch_size": 4, "lr": 0.01},
}


@pytest.mark.parametrize(("sections", "stop_after"), [(PLAIN, 6), (ADAPTED, 5)], ids=["plain", "lora"])
def test_resumed_run_gives_the_same_bytes(
    sections: dict[str, Any], stop_after: int, ingest: Path, tmp_path: Path
) -> None:
    """Weights, adapters, dropout, curves and metrics equal those of an uninterrupted run."""
    whole, _ = train(ingest, tmp_path / "whole", **sections)
    with pytest.raises(KeyboardInterrupt):
        train(ingest, tmp_path / "stopped", stop_after=stop_after, **sections)
    assert not (tmp_path / "stopped" / "sft").exists()
    resumed, track = train(ingest, tmp_path / "stopped", **sections)
    assert min(track.steps("loss")) > sections["sft"]["eval_every"], "it resumed from a checkpoint"
    assert content(resumed) == content(whole)
    if sections is ADAPTED:
        assert_only_adapters_were_trained(whole, ingest)


def assert_only_adapters_were_trained(out: Path, ingest: Path) -> None:
    """Asserts that text model and connector have trained adapters and the frozen vision tower none."""
    base = base_model(write_params(out.parent / "params.yaml", **ADAPTED), ingest)[0].state_dict()
    written = load_file(out / "model.safetensors")
    assert written.keys() == base.keys()
    assert all(torch.equal(value, base[name]) for name, value in written.items())
    adapter = load_file(out / ADAPTER / WEIGHTS)
    assert all(value.any() for value in adapter.values()), "the second matrices begin at 0"
    assert {"text_model.layers" in name or "connector" in name for name in adapter} == {True}


def test_run_stopped_after_its_last_step_trains_no_further(ingest: Path, tmp_path: Path) -> None:
    """Its last checkpoint exists and its output does not; test_skill.py has one that ended by patience."""
    ending = {"max_steps": 5, "eval_every": 3}
    out, _ = train(ingest, tmp_path, sft=ending)
    before = content(out)
    out.rename(tmp_path / "elsewhere")
    again, track = train(ingest, tmp_path, sft=ending)
    assert track.steps("loss") == []
    assert content(again) == before


def test_interrupted_run_keeps_the_previous_output(ingest: Path, tmp_path: Path) -> None:
    out, _ = train(ingest, tmp_path)
    before = content(out)
    with pytest.raises(KeyboardInterrupt):
        train(ingest, tmp_path, stop_after=2, sft={"lr": 0.5})
    assert content(out) == before


def test_all_unreadable_images_are_named_before_training(ingest: Path, tmp_path: Path) -> None:
    shutil.copytree(ingest, tmp_path / "ingest")
    for split in ("train", "val"):
        (shard,) = (tmp_path / "ingest").glob(f"{split}-*.parquet")
        table = pq.read_table(shard)
        rows = table.to_pylist()
        for row, broken in ((1, b"no image"), (len(rows) - 1, b"")):
            rows[row]["image"]["bytes"] = broken
        pq.write_table(pa.Table.from_pylist(rows, table.schema), shard)
    named = [f"{split} image {id}" for split in ("train", "val") for id in second_and_last(ingest, split)]
    with pytest.raises(ConcordError, match=r"4 images of train and val cannot be read") as error:
        train(tmp_path / "ingest", tmp_path / "run")
    assert re.findall(r"(\w+ image \S+): ", str(error.value)) == named
    assert "run ingest again" in str(error.value)
    assert not list((tmp_path / "run").glob("state/**/checkpoint-*"))


def second_and_last(ingest: Path, split: str) -> tuple[str, str]:
    ids = read_table(ingest, split, ["id"])["id"].to_pylist()
    return ids[1], ids[-1]
