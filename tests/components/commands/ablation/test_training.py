"""Training of the arms: their time, and a run of two seeds that is killed and resumed."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from components.commands.ablation import command, stopwatch
from components.commands.ablation.answers import Answers, read_answers
from components.commands.ablation.command import main
from components.commands.ablation.stopwatch import Stopwatch, Tally, TrialOverError
from components.commands.ablation.studies import STUDIES, Arm, Comparison, Study
from components.commands.ablation.training import Job, steps_within
from components.errors import ConcordError
from components.shared.model.loading import base_model, save
from components.shared.rows.rows import Row, ShardWriter
from tests.support import gray_world
from tests.support.gauge_world import write_params

ROOT = Path(__file__).parents[4]
MODEL: Any = gray_world.SECTIONS["model"]
SMALL = Study(
    "Ablation",
    "Two arms",
    {
        "ccc": Arm("CCC-GRPO", {"estimator": "sampled", "reward": "ccc"}),
        "sft": Arm("SFT continued", None, "ccc"),
    },
    ("text", "auto"),
    (Comparison("All by median with auto", (("ccc.auto", "warm.auto"), ("sft.auto", "warm.auto"))),),
)


class Clock:
    """A clock that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(stopwatch, "training_clock", clock)
    return clock


def test_stopwatch_counts_steps_without_loading_and_validation(clock: Clock, tmp_path: Path) -> None:
    watch = Stopwatch(tmp_path / "time.json")
    for now, step, metrics in (
        (9.0, 1, {"loss": 1.0}),  # loading comes before it
        (11.0, 2, {"loss": 1.0}),
        (50.0, 2, {"val_score": 1.0}),  # a validation pass
        (53.0, 3, {"loss": 1.0}),
        (60.0, 3, {"runtime": 1.0}),
    ):
        clock.now = now
        watch.log(metrics, step)
    assert Tally.read(tmp_path / "time.json") == Tally(2, 5.0)
    assert Tally(2, 5.0).per_step == 2.5


def test_a_resumed_training_adds_to_the_tally(clock: Clock, tmp_path: Path) -> None:
    for start, steps in ((0.0, (1, 2, 3)), (100.0, (3, 4))):
        watch = Stopwatch(tmp_path / "time.json")
        for step in steps:
            clock.now = start + step
            watch.log({"loss": 1.0}, step)
        watch.log({"val_score": 1.0}, step)
    assert Tally.read(tmp_path / "time.json") == Tally(3, 3.0)


def test_a_trial_ends_after_its_steps(clock: Clock, tmp_path: Path) -> None:
    watch = Stopwatch(tmp_path / "trial.json", trial_steps=2)
    watch.log({"loss": 1.0}, 1)
    watch.log({"loss": 1.0}, 2)
    with pytest.raises(TrialOverError):
        watch.log({"loss": 1.0}, 3)
    assert Tally.read(tmp_path / "trial.json").steps == 2


@pytest.mark.parametrize(
    ("seconds", "per_step", "steps"), [(100, 0.5, 200), (100, 0.51, 190), (99.9, 0.5, 190), (1, 0.5, 10)]
)
def test_steps_fill_the_time_in_tens(seconds: float, per_step: float, steps: int) -> None:
    assert steps_within(seconds, per_step) == steps


def in_this_process(function: Callable[[Job], Any], jobs: list[Job], count: int) -> list[Any]:
    return [function(job) for job in jobs]


def words(world: Path, name: str, seeds: Sequence[int] = (0, 1)) -> list[str]:
    paths = {"params": "params.yaml", "ingest": "rows", "work": name, "out": f"{name}/ablation"}
    return ["--seeds", *map(str, seeds), "--jobs=1", *(f"--{option}={world}/{path}" for option, path in paths.items())]


def make_small(patch: pytest.MonkeyPatch) -> None:
    """Two arms of few steps, trained in this process by one thread."""
    patch.setattr(command, "_parallel", in_this_process)
    patch.setattr(command, "steps_within", lambda seconds, per_step: 6)  # independent of the times measured
    patch.setattr(os, "cpu_count", lambda: 1)
    patch.setitem(STUDIES, "claim", lambda settings: SMALL)


def run_until_killed(world: Path) -> None:
    """Runs the study and kills this process in the third step of CCC-GRPO of seed 1."""
    log = Stopwatch.log

    def killing(self: Stopwatch, metrics: dict[str, float], step: int) -> None:
        log(self, metrics, step)
        if step == 3 and "seed-1/ccc-state" in str(self._path):
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stopwatch, "log", killing)
        make_small(patch)
        main(words(world, "killed"))


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with settings and row shards of some gray images; trainings run in this process."""
    threads = torch.get_num_threads()
    write_params(
        tmp_path / "params.yaml",
        task={"resolution": 20, "bin_width": 20},
        model=MODEL,
        sft={"eval_rows": 4},
        grpo={"eval_rows": 4},
    )
    (tmp_path / "rows").mkdir()
    for split, counts in {"train": {20: 8, 40: 6, 60: 4, 80: 2}, "val": {20: 4, 60: 4}, "test": {20: 3, 80: 3}}.items():
        with ShardWriter(tmp_path / "rows", split, 1) as shard:
            for number, label in enumerate(label for label, count in counts.items() for _ in range(count)):
                image = gray_world.gray(label, 1000 * len(split) + number)
                shard.add(Row(f"{split}-{number}", image, label, "How bright?", "made"))
    make_small(monkeypatch)
    yield tmp_path
    torch.set_num_threads(threads)


def results(world: Path, name: str) -> dict[str, Any]:
    """The results without the measured times."""
    content = json.loads((world / name / "ablation.json").read_text(encoding="utf-8"))
    return {key: value for key, value in content.items() if key != "seconds"}


def test_a_killed_run_resumes_and_gives_the_same_tables(world: Path) -> None:
    code = (
        "from pathlib import Path; from tests.components.commands.ablation.test_training import run_until_killed; "
        f"run_until_killed(Path({str(world)!r}))"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert results(world, "killed")["seeds"] == [0], "the table of the seed that was complete"
    trained = {path: path.stat().st_mtime_ns for path in (world / "killed").rglob("model.safetensors")}
    names = {str(path.relative_to(world / "killed").parent).partition("/")[2].partition("/")[2] for path in trained}
    assert {"claim/seed-0/ccc", "claim/seed-0/sft", "warm/seed-0", "warm/seed-1"} <= names
    main(words(world, "killed"))
    assert {path: path.stat().st_mtime_ns for path in trained if path.exists()} == {
        path: stamp for path, stamp in trained.items() if "checkpoint" not in str(path)
    }
    assert not list((world / "killed").rglob("*-state"))
    main(words(world, "whole"))
    assert results(world, "killed") == results(world, "whole")
    assert results(world, "whole")["seeds"] == [0, 1]
    assert results(world, "whole")["steps"] == {"warm": [6, 6], "ccc": [4, 4], "sft": [6, 6]}
    assert "2 seeds (0, 1)" in (world / "whole" / "ablation.md").read_text(encoding="utf-8")


def test_each_job_has_a_process_of_its_own() -> None:
    jobs: Any = ["__import__('os').getpid()"] * 2
    evaluate: Any = eval
    assert len({os.getpid(), *command._parallel(evaluate, jobs, 2)}) == 3


def test_missing_input_is_named_with_the_step_that_creates_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path / "params.yaml")
    with pytest.raises(ConcordError, match=r"artifacts/ingest: missing\. Create it first: .*components ingest"):
        main([])


def test_a_trial_on_validation_images_reads_those_that_choices_are_made_on(world: Path) -> None:
    main([*words(world, "val", [0]), "--split=val"])
    assert results(world, "val")["split"] == "val"
    assert results(world, "val")["sizes"]["all"] == 4


def test_a_broken_test_image_is_left_out_as_in_evaluate(world: Path) -> None:
    shard = world / "rows" / "test-00000.parquet"
    table = pq.read_table(shard)
    rows = table.to_pylist()
    rows[1]["image"]["bytes"] = b"no image"
    pq.write_table(pa.Table.from_pylist(rows, table.schema), shard)
    sections = {"task": {"resolution": 20, "bin_width": 20}, "model": MODEL, "evaluate": {"max_unreadable": 0.2}}
    settings = write_params(world / "params.yaml", **sections)
    save(*base_model(settings, world / "rows"), world / "model")
    read_answers(settings, world / "rows", "test", world / "model", world / "answers.npz")
    assert Answers.read(world / "answers.npz").ids.tolist() == ["test-0", "test-2", "test-3", "test-4", "test-5"]
