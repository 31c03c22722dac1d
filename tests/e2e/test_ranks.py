"""Two real ranks on one CPU: sft ends in the same weights as one rank; grpo survives kills of ranks and launcher.

The real command line, with launcher.num_processes in the settings and nothing else.
"""

import json
import random
import shutil
import signal
import sqlite3
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

from components.grpo.step import run as grpo_run
from components.sft.step import run as sft_run
from components.shared.model.generation import collect_answers
from components.shared.model.loading import base_model, load
from components.shared.model.prompts import max_answer_tokens
from components.shared.rows.rows import read_rows, slice_rows
from tests.e2e.test_kill import Place
from tests.support.gauge_world import LORA, Curves, curve, ingested, write_params
from tests.support.rank_validation import COUNTS
from tests.support.raw_folder import content

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

# Answers of one, two and three digits: a rank's share of a batch has fewer tokens than another's.
TRAIN = {5: 9, 30: 8, 35: 10, 60: 4, 90: 1, 100: 9}
PAIR = {"num_processes": 2}
SHARDED = PAIR | {"sharding": "full"}
SFT = {"max_steps": 4, "batch_size": 12, "accumulation": 2, "eval_every": 4, "lr": 0.001, "warmup_steps": 0}
GRPO = {"steps": 60, "checkpoint_every": 2, "eval_rows": 7}
EXACT = {
    "estimator": "means", "prompts": 12, "accumulation": 2, "steps": 4, "checkpoint_every": 3, "lr": 0.001,
    "warmup_steps": 0, "eval_rows": 7, "balance": 0.5, "recent": {"inputs": 20, "steps": 4},
}  # fmt: skip

# Long enough that a signal after the first checkpoint arrives before the end.
LONG: dict[str, dict[str, Any]] = {
    "sft": {**SFT, "max_steps": 40, "patience": 99},
    "grpo": {**EXACT, "steps": 40, "checkpoint_every": 4},
}
# A sharded step takes longer.
SHORT: dict[str, dict[str, Any]] = {
    "sft": LONG["sft"] | {"max_steps": 12},
    "grpo": LONG["grpo"] | {"steps": 12},
}


@pytest.fixture(scope="module")
def ingest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ingested(tmp_path_factory.mktemp("world"), TRAIN)


@pytest.fixture(scope="module")
def warm(ingest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers with numbers."""
    place = tmp_path_factory.mktemp("warm")
    settings = write_params(place / "params.yaml", sft={"max_steps": 80, "eval_every": 80, "lr": 0.004})
    sft_run(settings, Curves(), ingest=ingest, validate=ingest, out=place / "sft", state=place / "state")  # type: ignore[arg-type]
    return place / "sft"


@pytest.fixture
def place(ingest: Path, tmp_path: Path) -> Any:
    """Creates the folder of a run with its own settings."""
    made = []

    def make(name: str, **sections: Any) -> Place:
        params = tmp_path / f"{name}.yaml"
        write_params(params, **sections)
        made.append(Place(tmp_path / name, params, ingest, tmp_path / f"{name}.db"))
        made[-1].folder.mkdir()
        return made[-1]

    yield make
    for process in [process for place in made for process in place.started]:
        for one in family(process):
            one.kill()
        process.wait()


def begin(place: Place, step: str) -> "subprocess.Popen[bytes]":
    return place.start("-m", "components", *place.words(step).split())


def family(process: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    """The process and its ranks."""
    if process.poll() is not None:
        return []
    first = psutil.Process(process.pid)
    return [first, *first.children(recursive=True)]


def runs(place: Place) -> list[tuple[str, str, str]]:
    """Name, status and number of ranks of each step's MLflow run, in order."""
    query = """select r.name, r.status, t.value from runs r join tags t on t.run_uuid = r.run_uuid
        where t.key = 'concord.ranks' order by r.start_time"""
    with sqlite3.connect(f"file:{place.store}?mode=ro", uri=True) as database:
        return database.execute(query).fetchall()


@pytest.mark.parametrize("model", [{}, {"lora": LORA | {"dropout": 0.0}}], ids=["all weights", "adapters"])
def test_sft_on_two_ranks_ends_in_the_weights_of_one(model: dict[str, Any], ingest: Path, place: Any) -> None:
    alone, pair = place("alone", sft=SFT, model=model), place("pair", sft=SFT, model=model, launcher=PAIR)
    settings = write_params(alone.params, sft=SFT, model=model)
    out = alone.folder / "sft"
    sft_run(settings, Curves(), ingest=ingest, validate=ingest, out=out, state=alone.folder / "state")  # type: ignore[arg-type]
    pair.finish(begin(pair, "sft"))

    trained = "adapter/adapter_model.safetensors" if model else "model.safetensors"
    one, two = (load_file(done.folder / "sft" / trained) for done in (alone, pair))
    assert one.keys() == two.keys()
    begun = base_model(settings, ingest)[0].state_dict()
    # An adapter's second factor begins as zeros.
    assert max((one[name] - begun.get(name, 0)).abs().max() for name in one if "lora_A" not in name) > 1e-3
    for name, weights in one.items():
        assert torch.allclose(two[name], weights, rtol=0, atol=1e-5), name
    assert content(out).keys() | {"libraries.json"} == content(pair.folder / "sft").keys()  # which the runner writes
    for step, figures in curve(out).items():
        assert curve(pair.folder / "sft")[step] == pytest.approx(figures, rel=1e-4)

    log = pair.log()
    assert log.count("sft done") == log.count("SFT warm start") == 1
    assert "Warning" not in log
    assert runs(pair) == [("sft", "FINISHED", "2")]
    (state,) = (pair.folder / "state" / "sft").iterdir()
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= {file.name for file in (state / "checkpoint-4").iterdir()}


def test_an_error_is_reported_once_and_ends_every_rank(place: Any) -> None:
    odd = place("odd", sft={"batch_size": 13}, launcher=PAIR)
    process = begin(odd, "sft")
    assert process.wait(timeout=300) == 1
    log = " ".join(odd.log().split())
    message = "error sft.batch_size: 13 cannot be divided evenly over 2 ranks. Make it a multiple of 2"
    assert log.count(message) == log.count("error") == 1, log
    assert not [word for word in ("Traceback", "exitcode", "closing signal") if word in log]
    assert not (odd.folder / "sft").exists()
    assert runs(odd) == [("sft", "FAILED", "2")]


def test_exact_grpo_on_two_ranks_ends_in_the_weights_of_one(ingest: Path, warm: Path, place: Any) -> None:
    """Also the validation figures, whose 7 images do not divide evenly, and the step that is kept."""
    alone, pair = place("alone", grpo=EXACT), place("pair", grpo=EXACT, launcher=PAIR)
    settings, out = write_params(alone.params, grpo=EXACT), alone.folder / "grpo"
    grpo_run(settings, Curves(), ingest=ingest, sft=warm, out=out, state=alone.folder / "state")  # type: ignore[arg-type]
    shutil.copytree(warm, pair.folder / "sft")
    pair.finish(begin(pair, "grpo"))
    begun = load_file(warm / "model.safetensors")
    one, two = (load_file(done.folder / "grpo" / "model.safetensors") for done in (alone, pair))
    assert max((one[name] - begun[name]).abs().max() for name in one) > 1e-3
    for name, weights in one.items():
        assert torch.allclose(two[name], weights, rtol=0, atol=1e-5), name
    expected, found = curve(alone.folder / "grpo"), curve(pair.folder / "grpo")
    assert [step for step, figures in expected.items() if "val_score" in figures] == [3, 4]
    for step, figures in expected.items():
        assert found[step] == pytest.approx(figures, rel=1e-3, abs=1e-5)
    kept = [
        json.loads((done.folder / "grpo" / "metrics.json").read_text("utf-8"))["best_step"] for done in (alone, pair)
    ]
    assert kept[0] == kept[1]
    assert "Warning" not in pair.log()


@pytest.mark.parametrize("step", ["sft", "grpo"])
def test_another_number_of_ranks_resumes_from_the_same_state(step: str, ingest: Path, warm: Path, place: Any) -> None:
    """One rank begins, two resume until a signal stops them between two scheduled checkpoints, one rank finishes."""
    alone, moved = place("alone", **LONG), place("moved", **LONG, launcher=PAIR)
    train_here(alone, step, ingest, warm, LONG)
    with pytest.raises(KeyboardInterrupt):
        train_here(moved, step, ingest, warm, LONG, stop_after=8)
    first = moved.sealed(step)[-1]
    assert first in (4, 8)

    shutil.copytree(warm, moved.folder / "sft", dirs_exist_ok=True)
    process = begin(moved, step)
    while process.poll() is None and moved.sealed(step)[-1] == first:
        time.sleep(0.002)
    process.terminate()
    assert process.wait(timeout=120) == 143, moved.log()
    assert f"resuming from step {first} on another number of ranks: 2 instead of 1" in " ".join(moved.log().split())
    second = moved.sealed(step)[-1]
    assert first < second < 40

    resumed = train_here(moved, step, ingest, warm, LONG)
    assert second < resumed.points[0][0]
    ends_alike(alone, moved, step)


@pytest.mark.parametrize("step", ["sft", "grpo"])
def test_a_sharded_training_resumes_with_and_without_sharding(step: str, ingest: Path, warm: Path, place: Any) -> None:
    """It is stopped between two scheduled checkpoints; either way it ends in the weights of one rank."""
    alone, whole = place("alone", **SHORT), place("whole", **SHORT)
    sharded = place("sharded", **SHORT, launcher=SHARDED)
    train_here(alone, step, ingest, warm, SHORT)
    shutil.copytree(warm, sharded.folder / "sft")
    process = begin(sharded, step)
    while process.poll() is None and not sharded.sealed(step):
        time.sleep(0.002)
    process.terminate()
    assert process.wait(timeout=120) == 143, sharded.log()
    reached = sharded.sealed(step)[-1]
    assert 4 <= reached < 12

    shutil.copytree(sharded.folder / "state", whole.folder / "state")
    assert train_here(whole, step, ingest, warm, SHORT).points[0][0] > reached
    ends_alike(alone, whole, step)

    sharded.finish(begin(sharded, step))
    assert sharded.first_step_of_last_run(step) > reached
    assert "Warning" not in sharded.log()
    ends_alike(alone, sharded, step)
    model, _ = load(sharded.folder / step, write_params(alone.params, **SHORT).model)
    written = load_file(sharded.folder / step / "model.safetensors")
    assert all(torch.equal(model.state_dict()[name], weights) for name, weights in written.items())


def train_here(
    place: Place, step: str, ingest: Path, warm: Path, sections: Any, stop_after: int | None = None
) -> Curves:
    """Runs the step in this process, as one rank, in the place's folder and with its training state."""
    settings, curves = write_params(place.folder / "alone.yaml", **sections), Curves(stop_after)
    out, state = place.folder / step, place.folder / "state" / step
    if step == "sft":
        sft_run(settings, curves, ingest=ingest, validate=ingest, out=out, state=state)  # type: ignore[arg-type]
    else:
        grpo_run(settings, curves, ingest=ingest, sft=warm, out=out, state=state)  # type: ignore[arg-type]
    return curves


def ends_alike(alone: Place, moved: Place, step: str) -> None:
    """The same weights after the last step, and the same curve, up to rounding, which the steps of Adam let grow."""
    last = f"state/{step}/*/checkpoint-{alone.sealed(step)[-1]}/model.safetensors"
    one, other = (load_file(next(place.folder.glob(last))) for place in (alone, moved))
    for name, weights in one.items():
        assert torch.allclose(other[name], weights, rtol=0, atol=1e-4), name
    expected, found = curve(alone.folder / step), curve(moved.folder / step)
    assert list(found) == list(expected)
    for number, figures in expected.items():
        assert found[number] == pytest.approx(figures, rel=1e-2, abs=1e-4), number


def test_grpo_killed_in_three_ways_ends_in_the_same_bytes(warm: Path, place: Any, tmp_path: Path) -> None:
    # DDP, the default without a config; so the two ways to launch are compared with each other too.
    ddp = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "MULTI_GPU",
        "num_machines": 1,
        "num_processes": 8,
    }
    (tmp_path / "accelerate.yaml").write_text(yaml.safe_dump(ddp | {"mixed_precision": "no", "use_cpu": False}))
    by_accelerate = PAIR | {"config": str(tmp_path / "accelerate.yaml")}
    undisturbed, killed = (
        place("undisturbed", grpo=GRPO, launcher=by_accelerate),
        place("killed", grpo=GRPO, launcher=PAIR),
    )
    for run in (undisturbed, killed):
        shutil.copytree(warm, run.folder / "sft")
    undisturbed.finish(begin(undisturbed, "grpo"))

    process, ranks = at_a_random_moment(killed)
    next(rank for rank in ranks if rank.environ()["RANK"] == "1").kill()
    assert process.wait(timeout=120) == 75
    assert "error rank 1 of 2 was ended by SIGKILL" in killed.log()
    assert not [word for word in ("Traceback", "exitcode", "closing signal") if word in killed.log()]
    assert gone(ranks)

    process, ranks = at_a_random_moment(killed)
    for one in family(process):
        one.kill()
    assert gone(ranks)

    process, ranks = at_a_random_moment(killed)
    process.kill()
    assert gone(ranks), "orphans train on"
    reached = killed.sealed("grpo")[-1]
    assert process.wait() == -signal.SIGKILL
    assert not (killed.folder / "grpo").exists()

    killed.finish(begin(killed, "grpo"))
    expected, found = content(undisturbed.folder / "grpo"), content(killed.folder / "grpo")
    assert found.keys() == expected.keys()
    for name, data in expected.items():
        assert found[name] == data, name
    assert killed.first_step_of_last_run("grpo") == reached + 1
    answered = curve(killed.folder / "grpo")
    assert list(answered) == list(range(1, 61))
    assert answered[1]["invalid"] < 0.5
    assert any(line["spread/ccc"] > 0 for line in answered.values())


def at_a_random_moment(place: Place) -> tuple["subprocess.Popen[bytes]", list[psutil.Process]]:
    """Starts grpo and returns a while after its first checkpoint."""
    before = place.sealed("grpo")
    process = begin(place, "grpo")
    while process.poll() is None and place.sealed("grpo") == before:
        time.sleep(0.002)
    moment = random.uniform(0, 0.5)
    time.sleep(moment)
    ranks = family(process)[1:]
    assert len(ranks) == 2, f"it had ended {moment} s after a checkpoint: {place.log()}"
    return process, ranks


def gone(ranks: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(ranks, timeout=60)[1]


def test_validation_images_that_do_not_divide_evenly_are_all_evaluated_on_every_rank(
    ingest: Path, warm: Path, tmp_path: Path
) -> None:
    params = tmp_path / "params.yaml"
    settings = write_params(params, sft={"batch_size": 6})
    place = Place(tmp_path, params, ingest, tmp_path / "mlflow.db")
    arguments = map(str, (params, ingest, warm, tmp_path))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]
    place.finish(place.start(*launcher, "-m", "tests.support.rank_validation", *arguments))
    model, processor = load(warm, settings.model)
    length = max_answer_tokens(processor, settings.task)
    for count in COUNTS:
        rows = slice_rows(read_rows(ingest, "val"), 0, count)
        _, _, alone = collect_answers(model, processor, rows, 4, length, settings.task)
        assert np.isfinite(alone).mean() > 0.5
        for rank in range(3):
            found = json.loads((tmp_path / f"rank-{rank}.json").read_text(encoding="utf-8"))[str(count)]
            np.testing.assert_array_equal(np.array(found, np.float64), alone)
