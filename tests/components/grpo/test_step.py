"""The step grpo: every reward, adapters, accumulation, a model without valid answers, and resuming."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from components.errors import ConcordError
from components.grpo.step import run
from components.sft.step import run as sft_run
from components.shared.model.adapter import ADAPTER, CONFIG, WEIGHTS
from components.shared.model.answer_tree import answer_tree
from components.shared.model.generation import collect_answers
from components.shared.model.loading import base_model, load, save
from components.shared.model.number_reader import collect_log_probabilities
from components.shared.model.validation_pass import save_validation
from components.shared.rows.rows import read_table, slice_rows
from components.shared.rows.validation import tune_rows, tune_table
from components.shared.training.validation import TaskNumbers, text_figures, validation_figures
from tests.support.gauge_world import LORA, Curves, curve, ingested, write_params
from tests.support.raw_folder import content


@pytest.fixture(scope="module")
def ingest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ingested(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def warm(ingest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learned the format and little more."""
    folder = tmp_path_factory.mktemp("warm")
    settings = write_params(folder / "params.yaml", sft={"max_steps": 80, "eval_every": 80, "lr": 0.004})
    sft_run(settings, Curves(), ingest=ingest, validate=ingest, out=folder / "sft", state=folder / "state")  # type: ignore[arg-type]
    return folder / "sft"


@pytest.fixture(scope="module")
def adapted(ingest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A warm start whose adapter was trained, and little."""
    folder = tmp_path_factory.mktemp("adapted")
    sft = {"max_steps": 10, "eval_every": 10, "lr": 0.004}
    settings = write_params(folder / "params.yaml", model=ADAPTED["model"], sft=sft)
    sft_run(settings, Curves(), ingest=ingest, validate=ingest, out=folder / "sft", state=folder / "state")  # type: ignore[arg-type]
    return folder / "sft"


@pytest.fixture(scope="module")
def untrained(ingest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("untrained")
    settings = write_params(folder / "params.yaml")
    model, processor = base_model(settings, ingest)
    save(model, processor, folder / "sft")
    save_validation(folder / "sft", model, processor, settings.task, ingest, 32)
    return folder / "sft"


def train(
    ingest: Path, warm: Path, folder: Path, stop_after: int | None = None, **sections: Any
) -> tuple[Path, Curves]:
    """Runs the step with small settings; its state is in `folder` too, so that a second call resumes."""
    settings = write_params(folder / "params.yaml", **sections)
    track, out = Curves(stop_after), folder / "grpo"
    run(settings, track, ingest=ingest, sft=warm, out=out, state=folder / "state")  # type: ignore[arg-type]
    return out, track


def changed(out: Path, warm: Path) -> list[str]:
    """Names of the weights that differ from the warm start; of those of the adapters, if there are any."""
    if (warm / ADAPTER).exists():
        assert (out / "model.safetensors").read_bytes() == (warm / "model.safetensors").read_bytes()
        assert {path.name for path in (out / ADAPTER).iterdir()} == {CONFIG, WEIGHTS}, "without the reference"
    weights = f"{ADAPTER}/{WEIGHTS}" if (warm / ADAPTER).exists() else "model.safetensors"
    after, before = load_file(out / weights), load_file(warm / weights)
    assert after.keys() == before.keys()
    assert all(value.isfinite().all() for value in after.values())
    return [name for name, value in after.items() if not torch.equal(value, before[name])]


@pytest.mark.parametrize("reward", ["ccc", "mae", "mse", "pearson", "crps"])
def test_every_reward_trains_and_is_logged(reward: str, ingest: Path, warm: Path, tmp_path: Path) -> None:
    out, track = train(ingest, warm, tmp_path, grpo={"reward": reward, "steps": 3})
    lines = curve(out)
    assert list(lines) == track.steps("loss") == [1, 2, 3]
    assert track.steps("data_wait_share") == [1, 2, 3]
    logged = {
        f"reward/{reward}", f"spread/{reward}", "reward/format", "spread/format", "invalid", "batch_mae/all", "kl",
        "entropy", "loss", "grad_norm", "learning_rate",
    }  # fmt: skip
    for line in lines.values():
        assert logged <= line.keys()
        assert 0 <= line["invalid"] < 0.5
        assert line[f"spread/{reward}"] > 0
        assert -1 <= line[f"reward/{reward}"] <= 1
        assert line["batch_mae/all"] < 100
        assert any(f"batch_mae/{shot}" in line for shot in ("many", "medium", "few"))
    assert lines[1]["kl"] == pytest.approx(0, abs=1e-4)
    assert lines[3]["kl"] > 0
    assert len(changed(out, warm)) > 20
    assert "step_time" in {name for _, point in track.points for name in point}
    figures = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert figures["steps"] == 3
    assert not [name for name in figures if "time" in name or "second" in name]


@pytest.mark.parametrize(
    ("estimator", "reward"), [("means", "ccc"), ("means", "crps"), ("policy", "ccc"), ("policy", "mae")]
)
def test_the_exact_estimators_train_and_are_logged(
    estimator: str, reward: str, ingest: Path, warm: Path, tmp_path: Path
) -> None:
    balance = 0.5 if estimator == "means" else 0
    grpo = {"estimator": estimator, "reward": reward, "balance": balance, "steps": 3}
    out, track = train(ingest, warm, tmp_path, grpo=grpo)
    lines = curve(out)
    assert list(lines) == track.steps("loss") == [1, 2, 3]
    logged = {f"reward/{reward}", "batch_mae/all", "sd_ratio", "mass", "kl", "loss", "grad_norm", "learning_rate"}
    if estimator == "policy":
        logged.add(f"spread/{reward}")
    for line in lines.values():
        assert logged <= line.keys()
        assert 0 < line["mass"] <= 1 + 1e-6
        assert -1 <= line[f"reward/{reward}"] <= 1
    assert lines[1]["kl"] == pytest.approx(0, abs=1e-6)
    assert lines[3]["kl"] > 0
    assert len(changed(out, warm)) > 20


VALIDATED = {
    "val_score",
    "val_balance",
    "val_mae/all",
    "val_mae/few",
    "val_skill",
    "val_crps",
    "val_coverage",
    "val_mass",
}


@pytest.mark.parametrize("estimator", ["sampled", "means"])
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_the_checkpoint_that_is_best_on_validation_images_is_kept(
    estimator: str, lora: dict[str, Any] | None, ingest: Path, warm: Path, tmp_path: Path
) -> None:
    """Evaluated every two steps and at the end; a learning rate that is too high makes a later checkpoint worse."""
    grpo = {"estimator": estimator, "steps": 5, "lr": 0.05, "eval_rows": 20, "beta": 0.0}
    out, track = train(ingest, warm, tmp_path, grpo=grpo, model={"lora": lora})
    lines = curve(out)
    scores = {step: line["val_score"] for step, line in lines.items() if "val_score" in line}
    assert list(scores) == track.steps("val_score") == [2, 4, 5]
    by_text = {"val_text_mae/all", "val_text_mae/few"} if estimator == "sampled" else set()
    assert all(lines[step].keys() >= VALIDATED | by_text for step in scores)
    figures = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    best = min(scores, key=lambda step: scores[step])
    assert best < 5, "the last checkpoint is the best one: choose another learning rate"
    assert figures["best_step"] == best
    assert figures["steps"] == 5
    assert {name: lines[best][name] for name in VALIDATED} == {name: figures[name] for name in VALIDATED}

    settings = write_params(tmp_path / "kept.yaml")
    model, processor = load(out, settings.model)
    tree = answer_tree(processor, settings.task)
    _, log_p = collect_log_probabilities(model, processor, slice_rows(tune_rows(ingest), 0, 20), tree, 8)
    targets = tune_table(ingest)["target"].to_numpy()[:20]
    numbers = TaskNumbers.of(processor, settings.task, read_table(ingest, "train")["target"].to_numpy())
    kept = validation_figures(numbers, log_p, targets, 0.0)
    if estimator == "sampled":
        rows = slice_rows(tune_rows(ingest), 0, 20)
        answers = collect_answers(model, processor, rows, 8, 6, settings.task)[2]
        kept |= text_figures(numbers, settings.task, answers, targets)
    assert kept == pytest.approx({name: figures[name] for name in kept}, rel=1e-4)


def test_the_same_seed_gives_the_same_bytes(ingest: Path, warm: Path, tmp_path: Path) -> None:
    first, second, other = (
        train(ingest, warm, tmp_path / name, grpo={"seed": seed, "steps": 2})[0]
        for name, seed in (("first", 0), ("second", 0), ("other", 1))
    )
    assert content(first) == content(second)
    assert content(first)["model.safetensors"] != content(other)["model.safetensors"]


def test_a_warm_start_without_its_answers_is_refused_before_training(
    ingest: Path, untrained: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(untrained, bare)
    (bare / "validation.parquet").unlink()
    with pytest.raises(ConcordError, match=r"validation\.parquet: missing"):
        train(ingest, bare, tmp_path)
    assert not (tmp_path / "state").exists()


def test_a_training_without_valid_answers_is_an_error(ingest: Path, untrained: Path, tmp_path: Path) -> None:
    """All rewards are equal then, so the loss is 0 and nothing is written; the checkpoints stay."""
    track = Curves()
    settings = write_params(tmp_path / "params.yaml", grpo={"steps": 2, "no_signal": "error"})
    with pytest.raises(ConcordError, match=r"all answers of all 2 steps are invalid"):
        run(settings, track, ingest=ingest, sft=untrained, out=tmp_path / "grpo", state=tmp_path / "state")  # type: ignore[arg-type]
    lines = [point for _, point in track.points if "reward/ccc" in point]
    assert len(lines) == 2
    for line in lines:
        assert line["invalid"] == 1
        assert line["reward/ccc"] == -1
        assert line["reward/format"] == line["spread/ccc"] == 0
        assert "batch_mae/all" not in line
        assert line["loss"] == pytest.approx(0, abs=1e-6)
    assert not (tmp_path / "grpo").exists()
    assert list((tmp_path / "state").glob("*/checkpoint-2"))
    accepted = write_params(tmp_path / "params.yaml", grpo={"steps": 2, "no_signal": "warning"})
    again = Curves()
    run(accepted, again, ingest=ingest, sft=untrained, out=tmp_path / "grpo", state=tmp_path / "state")  # type: ignore[arg-type]
    assert not [point for _, point in again.points if "loss" in point], "it trained again"
    assert (tmp_path / "grpo" / "model.safetensors").exists()


def test_a_reward_that_never_differs_is_an_error(ingest: Path, warm: Path, tmp_path: Path) -> None:
    """The CCC of one input is 0 for every answer. The settings refuse that; here they are changed behind their back."""
    short = {"estimator": "means", "steps": 2, "checkpoint_every": 2, "no_signal": "error"}
    settings = write_params(tmp_path / "params.yaml", grpo=short)
    alone = settings.model_copy(update={"grpo": settings.grpo.model_copy(update={"prompts": 1})})
    with pytest.raises(ConcordError, match=r"grpo learned nothing: .*ccc"):
        run(alone, Curves(), ingest=ingest, sft=warm, out=tmp_path / "grpo", state=tmp_path / "state")  # type: ignore[arg-type]
    assert not (tmp_path / "grpo").exists()
    assert list((tmp_path / "state").glob("*/checkpoint-2"))


PLAIN: dict[str, Any] = {"grpo": {"steps": 5}}
ADAPTED: dict[str, Any] = {
    "model": {"lora": LORA, "freeze_vision": True},
    "grpo": {"steps": 5, "accumulation": 2, "lr": 0.01},
}


RECENT: dict[str, Any] = {"grpo": {"steps": 5, "prompts": 2, "recent": {"inputs": 8, "steps": 4}}}
MEANS = {"grpo": {**RECENT["grpo"], "estimator": "means", "balance": 0.5}}
EXACT_ADAPTED = {**ADAPTED, "grpo": {**ADAPTED["grpo"], "estimator": "means", "recent": {"inputs": 8, "steps": 4}}}
POLICY = {"grpo": {**RECENT["grpo"], "estimator": "policy"}}


@pytest.mark.parametrize(
    "sections",
    [PLAIN, ADAPTED, RECENT, MEANS, EXACT_ADAPTED, POLICY],
    ids=["plain", "lora", "recent", "means", "means with lora", "policy"],
)
def test_a_resumed_run_ends_in_the_same_bytes(
    sections: dict[str, Any], ingest: Path, warm: Path, adapted: Path, tmp_path: Path
) -> None:
    """Weights, adapters, samples, dropout, curves and metrics equal those of an uninterrupted run."""
    warm = adapted if "model" in sections else warm
    whole, _ = train(ingest, warm, tmp_path / "whole", **sections)
    with pytest.raises(KeyboardInterrupt):
        train(ingest, warm, tmp_path / "stopped", stop_after=3, **sections)
    assert not (tmp_path / "stopped" / "grpo").exists()
    resumed, track = train(ingest, warm, tmp_path / "stopped", **sections)
    assert track.steps("loss") == [3, 4, 5]
    assert content(resumed) == content(whole)
    names = changed(whole, warm)
    assert names
    if "model" in sections:
        assert all("text_model.layers" in name or "connector" in name for name in names)


def test_a_run_resumed_at_its_end_trains_no_further(ingest: Path, warm: Path, tmp_path: Path) -> None:
    out, _ = train(ingest, warm, tmp_path, grpo={"steps": 3})
    before = content(out)
    out.rename(tmp_path / "elsewhere")
    resumed, track = train(ingest, warm, tmp_path, grpo={"steps": 3})
    assert track.steps("loss") == []
    assert content(resumed) == before


def test_no_reference_unscaled_advantages_and_full_accumulation(ingest: Path, warm: Path, tmp_path: Path) -> None:
    out, _ = train(ingest, warm, tmp_path, grpo={"steps": 2, "beta": 0.0, "advantage": "none", "accumulation": 4})
    lines = curve(out)
    assert list(lines) == [1, 2]
    assert not [name for line in lines.values() for name in line if name == "kl"]
    assert changed(out, warm)


def test_a_frozen_vision_tower_without_adapters(ingest: Path, warm: Path, tmp_path: Path) -> None:
    out, _ = train(ingest, warm, tmp_path, model={"freeze_vision": True}, grpo={"steps": 2})
    names = changed(out, warm)
    assert names
    assert not any("vision_model" in name for name in names)


def test_gradient_checkpointing_changes_only_memory(ingest: Path, warm: Path, tmp_path: Path) -> None:
    """The prefix is shared in one pass without a cache; the model is the same up to rounding."""
    plain, _ = train(ingest, warm, tmp_path / "plain", grpo={"steps": 3})
    checkpointed, _ = train(ingest, warm, tmp_path / "checkpointed", grpo={"steps": 3, "gradient_checkpointing": True})
    assert changed(plain, warm)
    first, second = (load_file(out / "model.safetensors") for out in (plain, checkpointed))
    for name, weight in first.items():
        torch.testing.assert_close(second[name], weight, atol=1e-5, rtol=0)


def test_completions_that_cannot_be_divided_evenly(ingest: Path, warm: Path, tmp_path: Path) -> None:
    with pytest.raises(ConcordError, match=r"grpo: 4 prompts x 4 generations .* 3 accumulation .* multiple of 3"):
        train(ingest, warm, tmp_path, grpo={"accumulation": 3})
