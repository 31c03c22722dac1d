"""The arms of the ablation: SFT that ends by the clock, GRPO that is timed whole, and nothing that is run twice."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerControl, TrainerState, TrainingArguments

from components.commands.ablation.arms import Job, run
from components.commands.ablation.command import main
from components.commands.ablation.continued_sft import Until, effort
from components.commands.ablation.studies import STUDIES, claim
from components.errors import ConcordError
from components.settings import Grpo, Settings
from components.shared.io.atomic import write_json
from components.shared.model.loading import base_model, save
from tests.support.gauge_world import ingested, write_params


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, Path, Path]:
    """Settings, row shards, and an untrained model as the warm start."""
    place = tmp_path_factory.mktemp("world")
    settings = write_params(place / "params.yaml", grpo={"steps": 2})
    ingest = ingested(place / "rows")
    save(*base_model(settings, ingest), place / "warm")
    write_json(place / "warm" / "metrics.json", {"steps": 0})
    return settings, ingest, place / "warm"


def job(world: tuple[Settings, Path, Path], folder: Path, arm: Any, seed: int = 0, seconds: float | None = None) -> Job:
    settings, ingest, warm = world
    return Job(
        claim(settings).arms[arm],
        seed,
        settings,
        ingest,
        warm,
        folder / f"{arm}-{seed}",
        torch.get_num_threads(),
        seconds,
    )


def test_the_clock_ends_a_training(tmp_path: Path) -> None:
    arguments, state = TrainingArguments(output_dir=str(tmp_path), use_cpu=True), TrainerState()
    until = Until(0.05)
    until.on_train_begin(arguments, state, TrainerControl())
    control = TrainerControl()
    until.on_step_end(arguments, state, control)
    assert not control.should_training_stop
    end = effort() + 0.06  # of work: sleep is none
    while effort() < end:
        pass
    until.on_step_end(arguments, state, control)
    assert control.should_training_stop
    until.on_train_begin(arguments, state, control)  # the clock starts with each training
    fresh = TrainerControl()
    until.on_step_end(arguments, state, fresh)
    assert not fresh.should_training_stop


def test_sft_goes_on_for_the_time_it_is_given(world: tuple[Settings, Path, Path], tmp_path: Path) -> None:
    work = job(world, tmp_path, "sft", seconds=3.0)
    took = run(work)
    assert took >= 3.0
    assert (work.folder / "curve.csv").exists()
    after, before = load_file(work.folder / "model.safetensors"), load_file(world[2] / "model.safetensors")
    assert any(not torch.equal(value, before[name]) for name, value in after.items())


def test_an_arm_is_run_once_and_leaves_no_state(world: tuple[Settings, Path, Path], tmp_path: Path) -> None:
    work = job(world, tmp_path, "mae")
    took = run(work)
    assert took > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mae-0"]
    weights = work.folder / "model.safetensors"
    stamp = weights.stat().st_mtime_ns
    assert run(work) == took
    assert weights.stat().st_mtime_ns == stamp
    assert "reward/mae" in (work.folder / "curve.csv").read_text(encoding="utf-8").splitlines()[0].split(",")


def test_the_arm_decides_the_reward_and_the_seed_the_rest(world: tuple[Settings, Path, Path], tmp_path: Path) -> None:
    curves = {}
    for arm, seed in (("ccc", 0), ("ccc", 1)):
        work = job(world, tmp_path, arm, seed)
        run(work)
        curves[seed] = (work.folder / "curve.csv").read_text(encoding="utf-8")
    assert "reward/ccc" in curves[0].splitlines()[0]
    assert curves[0] != curves[1]


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_compares_arms_that_there_are(name: str, world: tuple[Settings, Path, Path]) -> None:
    study = STUDIES[name](world[0])
    known = {"warm", *study.arms}
    assert {arm for pair in study.pairs for arm in pair} == known
    assert study.ours in study.arms
    assert (study.ours, "warm") in study.pairs
    settings = [Grpo.model_validate({**world[0].grpo.model_dump(), **(a.grpo or {})}) for a in study.arms.values()]
    assert len({repr(grpo) for grpo in settings}) >= len(settings) - 1, "no two arms are the same"


def test_a_study_end_to_end(world: tuple[Settings, Path, Path], tmp_path: Path) -> None:
    """Every arm, and again: nothing is run twice."""
    _, ingest, warm = world
    write_params(tmp_path / "params.yaml", grpo={"steps": 1, "prompts": 8, "checkpoint_every": 50})
    words = f"--study recent --params {tmp_path}/params.yaml --ingest {ingest} --sft {warm} --seeds 0".split()
    words += f"--work {tmp_path}/work --out {tmp_path}/recent --split val --jobs 2".split()
    main(words)
    found = json.loads((tmp_path / "recent.json").read_text(encoding="utf-8"))
    assert set(found["steps"]) == {"warm", "alone-0", "recent-0"}
    assert set(found["paired"]) == {"recent - warm", "alone - warm", "recent - alone"}
    assert "| 8 inputs a step, the last 256 anchors beside |" in (tmp_path / "recent.md").read_text(encoding="utf-8")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.safetensors")}
    assert len(before) == 2
    main(words)
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize("missing", ["ingest", "sft"])
def test_what_is_missing_is_named(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path / "params.yaml")
    for name in {"ingest", "sft"} - {missing}:
        (tmp_path / "artifacts" / name).mkdir(parents=True)
    with pytest.raises(ConcordError, match=f"artifacts/{missing}: missing. Make it first: .*components {missing}"):
        main([])
