"""bfloat16: trained weights are float32, those of adapters too; what is evaluated and served is what was trained."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from components.grpo.arguments import reading_batch
from components.grpo.step import run
from components.settings import Settings
from components.sft.step import run as sft_run
from components.shared.model.adapter import ADAPTER, WEIGHTS
from components.shared.model.answer_tree import answer_tree
from components.shared.model.generation import collect_answers
from components.shared.model.loading import base_model, load
from components.shared.model.number_reader import NumberReader, collect_log_probabilities
from components.shared.model.validation_file import read_validation
from components.shared.rows.rows import read_rows, read_table, slice_rows
from components.shared.rows.validation import tune_rows, tune_table
from components.shared.tracking.registered import fetch_version
from components.shared.training.validation import TaskNumbers, validation_figures
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
    folder: Path,
    ingest: Path,
    sft: dict[str, Any],
    estimator: str = "means",
    stops: Stops = (None, None),
    lora: dict[str, Any] | None = None,
) -> tuple[Settings, Path, Path]:
    """The warm start and the model of GRPO; both steps resume in `folder`, and are stopped where `stops` says."""
    settings = write_params(
        folder / "params.yaml",
        model=BF16 | {"lora": lora},
        sft=sft,
        grpo={"estimator": estimator, "no_signal": "warning"},
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


@pytest.fixture(scope="module")
def adapted(ingest: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, Path, Path]:
    """With the learning rate of GRPO that of the recipes, whose updates a merged adapter would lose."""
    short = {"max_steps": 20, "eval_every": 20, "lr": 1e-3, "warmup_steps": 0}
    return trained(tmp_path_factory.mktemp("adapted"), ingest, short, lora=LORA | {"dropout": 0.0})


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


@pytest.mark.parametrize(("trained", "name"), [("models", "sft"), ("models", "grpo"), ("adapted", "grpo")])
def test_the_registered_model_gives_the_probabilities_and_texts_of_the_trained_one(
    trained: str,
    name: str,
    request: pytest.FixtureRequest,
    ingest: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To the last bit, in the batches in which the trained model read the validation images."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    settings, sft, grpo = request.getfixturevalue(trained)
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


@pytest.mark.parametrize("name", ["models", "adapted"])
def test_the_stored_model_has_the_figures_of_the_checkpoint_that_was_kept(
    name: str, request: pytest.FixtureRequest, ingest: Path
) -> None:
    """Which were computed in training, from the weights in memory."""
    settings, _, grpo = request.getfixturevalue(name)
    reader = NumberReader.load(grpo, settings.reader(0.5))
    rows, size = settings.grpo.eval_rows, reading_batch(settings.grpo, 1)
    log_p = np.concatenate([each for _, each in reader.log_probabilities(slice_rows(tune_rows(ingest), 0, rows), size)])
    train = read_table(ingest, "train", ["target"])["target"].to_numpy()
    numbers = TaskNumbers.of(reader.processor, settings.task, train)
    targets = tune_table(ingest)["target"].to_numpy()[:rows]
    found = validation_figures(numbers, log_p, targets, settings.grpo.balance)
    figures = json.loads((grpo / "metrics.json").read_text(encoding="utf-8"))
    assert {name: figures[name] for name in found} == found


def test_grpo_trains_the_adapter_of_the_warm_start_which_is_its_reference(
    adapted: tuple[Settings, Path, Path], ingest: Path
) -> None:
    settings, sft, grpo = adapted
    assert curve(grpo)[1]["kl"] == pytest.approx(0, abs=1e-6)
    warm, best = (load_file(folder / ADAPTER / WEIGHTS) for folder in (sft, grpo))
    assert warm.keys() == best.keys()
    assert all(value.any() for value in warm.values()), "the warm start is not its base"
    changed = [name for name, value in best.items() if not torch.equal(value, warm[name])]
    assert len(changed) > 0.5 * len(best)
    reader = NumberReader.load(sft, settings.reader(0.5))
    base = base_model(settings, ingest)[0]
    rows = list(read_rows(ingest, "val", 4))
    learned, before = (
        collect_log_probabilities(model, reader.processor, rows, reader.tree, 4)[1] for model in (reader.model, base)
    )
    both = np.isfinite(learned) & np.isfinite(before)
    assert np.abs(learned[both] - before[both]).max() > 0.1
