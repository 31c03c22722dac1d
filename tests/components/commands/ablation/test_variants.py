"""Training variants: SFT stops by time, GRPO is timed from start to end, and finished variants are not retrained."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerControl, TrainerState, TrainingArguments

from components.commands.ablation.command import main
from components.commands.ablation.continued_sft import StopAfterSeconds, training_clock
from components.commands.ablation.studies import STUDIES, claim
from components.commands.ablation.variants import TrainingJob, train_variant
from components.errors import ConcordError
from components.settings import Grpo, Settings
from components.shared.io.atomic import write_json
from components.shared.model.loading import base_model, save
from tests.support.gauge_world import ingested, write_params


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, Path, Path]:
    """Settings, row shards, and an untrained model as the warm start."""
    folder = tmp_path_factory.mktemp("world")
    settings = write_params(folder / "params.yaml", grpo={"steps": 2})
    ingest = ingested(folder / "rows")
    save(*base_model(settings, ingest), folder / "warm")
    write_json(folder / "warm" / "metrics.json", {"steps": 0})
    return settings, ingest, folder / "warm"


def training_job(
    world: tuple[Settings, Path, Path], folder: Path, variant: Any, seed: int = 0, seconds: float | None = None
) -> TrainingJob:
    settings, ingest, warm = world
    return TrainingJob(
        claim(settings).variants[variant],
        seed,
        settings,
        ingest,
        warm,
        folder / f"{variant}-{seed}",
        torch.get_num_threads(),
        seconds,
    )


def test_training_stops_after_the_given_seconds(tmp_path: Path) -> None:
    arguments, state = TrainingArguments(output_dir=str(tmp_path), use_cpu=True), TrainerState()
    callback = StopAfterSeconds(0.05)
    callback.on_train_begin(arguments, state, TrainerControl())
    control = TrainerControl()
    callback.on_step_end(arguments, state, control)
    assert not control.should_training_stop
    end = training_clock() + 0.06  # processor time, so that sleeping would not count
    while training_clock() < end:
        pass
    callback.on_step_end(arguments, state, control)
    assert control.should_training_stop
    callback.on_train_begin(arguments, state, control)  # each training restarts the clock
    fresh = TrainerControl()
    callback.on_step_end(arguments, state, fresh)
    assert not fresh.should_training_stop


def test_continued_sft_trains_for_the_given_time(world: tuple[Settings, Path, Path], tmp_path: Path) -> None:
    job = training_job(world, tmp_path, "sft", seconds=3.0)
    seconds = train_variant(job)
    assert seconds >= 3.0
    assert (job.folder / "curve.csv").exists()
    after, before = load_file(job.folder / "model.safetensors"), load_file(world[2] / "model.safetensors")
    assert any(not torch.equal(value, before[name]) for name, value in after.items())


def test_variant_is_trained_once_and_leaves_no_checkpoints(world: tuple[Settings, Path, Path], tmp_path: Path) -> None:
    job = training_job(world, tmp_path, "mae")
    seconds = train_variant(job)
    assert seconds > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mae-0"]
    weights = job.folder / "model.safetensors"
    stamp = weights.stat().st_mtime_ns
    assert train_variant(job) == seconds
    assert weights.stat().st_mtime_ns == stamp
    assert "reward/mae" in (job.folder / "curve.csv").read_text(encoding="utf-8").splitlines()[0].split(",")


def test_variant_sets_the_reward_and_the_seed_changes_the_curve(
    world: tuple[Settings, Path, Path], tmp_path: Path
) -> None:
    curves = {}
    for variant, seed in (("ccc", 0), ("ccc", 1)):
        job = training_job(world, tmp_path, variant, seed)
        train_variant(job)
        curves[seed] = (job.folder / "curve.csv").read_text(encoding="utf-8")
    assert "reward/ccc" in curves[0].splitlines()[0]
    assert curves[0] != curves[1]


@pytest.mark.parametrize("name", STUDIES)
def test_pairs_of_every_study_name_existing_variants(name: str, world: tuple[Settings, Path, Path]) -> None:
    study = STUDIES[name](world[0])
    known = {"warm", *study.variants}
    assert {variant for pair in study.pairs for variant in pair} == known
    assert study.ours in study.variants
    assert (study.ours, "warm") in study.pairs
    settings = [Grpo.model_validate({**world[0].grpo.model_dump(), **(v.grpo or {})}) for v in study.variants.values()]
    assert len({repr(grpo) for grpo in settings}) >= len(settings) - 1, "no two variants are the same"


def test_a_study_end_to_end(world: tuple[Settings, Path, Path], tmp_path: Path) -> None:
    """Trains every variant; a second call trains nothing."""
    _, ingest, warm = world
    write_params(tmp_path / "params.yaml", grpo={"steps": 1, "prompts": 8, "checkpoint_every": 50})
    arguments = f"--study recent --params {tmp_path}/params.yaml --ingest {ingest} --sft {warm} --seeds 0".split()
    arguments += f"--work {tmp_path}/work --out {tmp_path}/recent --split val --jobs 2".split()
    main(arguments)
    result = json.loads((tmp_path / "recent.json").read_text(encoding="utf-8"))
    assert set(result["steps"]) == {"warm", "alone-0", "recent-0"}
    assert set(result["paired"]) == {"recent - warm", "alone - warm", "recent - alone"}
    assert "| 8 inputs per step, with the last 256 anchors |" in (tmp_path / "recent.md").read_text(encoding="utf-8")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.safetensors")}
    assert len(before) == 2
    main(arguments)
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize("missing", ["ingest", "sft"])
def test_missing_input_is_named_with_the_step_that_creates_it(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path / "params.yaml")
    for name in {"ingest", "sft"} - {missing}:
        (tmp_path / "artifacts" / name).mkdir(parents=True)
    with pytest.raises(ConcordError, match=f"artifacts/{missing}: missing. Create it first: .*components {missing}"):
        main([])
