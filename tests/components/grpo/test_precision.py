"""bfloat16 without adapters: trained weights are float32, and what is evaluated and served is what was trained."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from components.grpo.step import run
from components.settings import Settings
from components.sft.step import run as sft_run
from components.shared.model.answer_tree import answer_tree
from components.shared.model.generation import collect_answers
from components.shared.model.loading import base_model, load
from components.shared.model.number_reader import NumberReader, collect_log_probabilities
from components.shared.model.validation_file import read_validation
from components.shared.rows.rows import read_rows
from components.shared.tracking.registered import fetch_version
from tests.support.gauge_world import LORA, Curves, curve, ingested, write_params
from tests.support.raw_folder import content
from tests.support.served import register_version

BF16: dict[str, Any] = {"dtype": "bfloat16"}
Stops = tuple[int | None, int | None]
SFT: dict[str, Any] = {"max_steps": 50, "eval_every": 50, "lr": 1e-5, "warmup_steps": 0}


@pytest.fixture(scope="module")
def ingest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ingested(tmp_path_factory.mktemp("world"))


def trained(
    folder: Path, ingest: Path, sft: dict[str, Any], estimator: str = "means", stops: Stops = (None, None)
) -> tuple[Settings, Path, Path]:
    """The warm start and the model of GRPO; both steps resume in `folder`, and are stopped where `stops` says."""
    settings = write_params(
        folder / "params.yaml", model=BF16, sft=sft, grpo={"estimator": estimator, "no_signal": "warning"}
    )
    warm, best = folder / "sft", folder / "grpo"
    paths: dict[str, Any] = {"ingest": ingest, "state": folder / "state"}
    if not warm.exists():
        track: Any = Curves(stops[0])
        sft_run(settings, track, validate=ingest, out=warm, **paths)
    track = Curves(stops[1])
    run(settings, track, sft=warm, out=best, **paths)
    return settings, warm, best


@pytest.fixture(scope="module")
def models(ingest: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, Path, Path]:
    return trained(tmp_path_factory.mktemp("trained"), ingest, SFT)


def test_small_updates_change_the_weights(models: tuple[Settings, Path, Path], ingest: Path) -> None:
    """50 steps with learning rate 1e-5; in bfloat16, 9 of 10 weights would stay what they were."""
    settings, sft, grpo = models
    before: dict[str, torch.Tensor] = dict(base_model(settings, ingest)[0].state_dict())
    for folder, least in ((sft, 0.95), (grpo, 0.5)):
        after = load_file(folder / "model.safetensors")
        assert {weight.dtype for weight in after.values()} == {torch.float32}
        changed = sum(int((weight != before[name]).sum()) for name, weight in after.items())
        assert changed > least * sum(weight.numel() for weight in after.values())
        before = after


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_loaded_model_computes_in_bfloat16(attention: str, models: tuple[Settings, Path, Path], ingest: Path) -> None:
    settings, sft, _ = models
    model, processor = load(sft, settings.model.model_copy(update={"attention": attention}))
    seen: set[torch.dtype] = set()
    loaded: Any = model
    loaded.model.text_model.layers[1].mlp.register_forward_hook(lambda _, __, out: seen.add(out.dtype))
    tree = answer_tree(processor, settings.task)
    _, log_p = collect_log_probabilities(model, processor, read_rows(ingest, "val"), tree, 4)
    collect_answers(model, processor, read_rows(ingest, "val"), 4, 8, settings.task)
    assert seen == {torch.bfloat16}
    assert np.isfinite(log_p).any(axis=1).all()


@pytest.mark.parametrize("name", ["sft", "grpo"])
def test_the_registered_model_gives_the_probabilities_and_texts_of_the_trained_one(
    name: str, models: tuple[Settings, Path, Path], ingest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit, in the batches in which the trained model read the validation images."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    settings, sft, grpo = models
    folder = sft if name == "sft" else grpo
    number = register_version(settings, folder, settings.reader(0.5))
    fetched = fetch_version(settings.registered_model, number, tmp_path / "fetched")
    reader = NumberReader.load(fetched.folder, fetched.reader)
    size = 2 * settings.sft.batch_size if name == "sft" else 2 * settings.grpo.prompts // settings.grpo.accumulation
    served = np.concatenate([log_p for _, log_p in reader.log_probabilities(read_rows(ingest, "val", size), size)])
    _, known = read_validation(folder)
    np.testing.assert_array_equal(served, known.log_p)
    if name == "sft":
        rows = read_rows(ingest, "val", size)
        texts = collect_answers(reader.model, reader.processor, rows, size, 8, settings.task)[2]
        np.testing.assert_array_equal(texts, known.warm_start)


@pytest.mark.parametrize("estimator", ["means", "sampled"])
def test_resumed_runs_give_the_same_bytes(estimator: str, ingest: Path, tmp_path: Path) -> None:
    short = {"max_steps": 8, "eval_every": 3}
    _, *whole = trained(tmp_path / "whole", ingest, short, estimator)
    stopped: list[Stops] = [(6, None), (None, 3)]
    for stops in stopped:
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "stopped", ingest, short, estimator, stops)
    assert (tmp_path / "stopped" / "sft").exists()
    _, *resumed = trained(tmp_path / "stopped", ingest, short, estimator)
    assert [content(folder) for folder in resumed] == [content(folder) for folder in whole]
    assert curve(whole[1])[1]["kl"] == pytest.approx(0, abs=1e-4), "training begins at its reference"


def test_merged_adapters_are_read_as_they_were_in_memory(ingest: Path, tmp_path: Path) -> None:
    settings = write_params(tmp_path / "params.yaml", model=BF16 | {"lora": LORA}, sft=SFT | {"lr": 1e-3})
    track: Any = Curves()
    sft_run(settings, track, ingest=ingest, validate=ingest, out=tmp_path / "sft", state=tmp_path / "state")
    size = 2 * settings.sft.batch_size
    reader = NumberReader.load(tmp_path / "sft", settings.reader(0.5))
    read = np.concatenate([log_p for _, log_p in reader.log_probabilities(read_rows(ingest, "val", size), size)])
    np.testing.assert_array_equal(read, read_validation(tmp_path / "sft")[1].log_p)
