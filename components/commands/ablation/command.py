"""`python -m components ablation`: trains the arms of a study from a warm start for each seed and compares them.

Studies: `claim` (what reinforcement learning is worth, with equal training time), `advantage` (what the advantages are
divided by) and `recent` (anchors of earlier steps with a batch of 8 inputs). One seed is trained after another, and
the tables are written again after each, from all complete seeds. Everything is kept below --work, in a folder for these
settings, inputs and code, so that an interrupted command resumes. Measured times are only fair if nothing else runs on
the machine.
"""

import argparse
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from components.commands.ablation.studies import STUDIES, WARM, Study
from components.commands.ablation.training import (
    TIME,
    Job,
    changed,
    measure_step,
    steps_within,
    train_and_read,
)
from components.console import console
from components.errors import ConcordError
from components.settings import Settings, load_settings
from components.shared.io.locks import work_lock
from components.shared.io.process_pool import process_pool
from components.steps import STEPS

T = TypeVar("T")


@dataclass(frozen=True)
class Plan:
    """What a command trains.

    Attributes:
        study, study_name, settings, ingest, split: see the command line.
        work: folder of all models for these settings, inputs and code.
        jobs: models trained in parallel.
    """

    study: Study
    study_name: str
    settings: Settings
    ingest: Path
    split: str
    work: Path
    jobs: int

    @property
    def threads(self) -> int:
        """CPU threads of one training."""
        return max((os.cpu_count() or 1) // self.jobs, 1)

    def warm_start(self, seed: int) -> Job:
        """The warm start of a seed, which all studies share."""
        folder = self.work / WARM / f"seed-{seed}"
        sft = self.settings.sft.model_copy(update={"seed": seed})
        settings = self._alone().model_copy(update={"sft": sft})
        return Job("warm", settings, self.ingest, folder, folder, self.split, self.threads)

    def arm(self, name: str, seed: int) -> Job:
        """An arm with a seed, with the steps of the settings."""
        arm = self.study.arms[name]
        return Job(
            "sft" if arm.grpo is None else "grpo",
            changed(self._alone(), {**(arm.grpo or {}), "seed": seed}),
            self.ingest,
            self.warm_start(seed).folder,
            self.work / self.study_name / f"seed-{seed}" / name,
            self.split,
            self.threads,
        )

    def models(self, seed: int) -> dict[str, Path]:
        """Folders of the seed's warm start and arms."""
        return {WARM: self.warm_start(seed).folder, **{name: self.arm(name, seed).folder for name in self.study.arms}}

    def is_complete(self, seed: int) -> bool:
        """Whether every model of the seed is trained and read."""
        return all((folder / f"answers-{self.split}.npz").exists() for folder in self.models(seed).values())

    def _alone(self) -> Settings:
        """One process without loader workers, whose time the training clock would not count."""
        alone = {"loader_workers": 0, "num_processes": 1, "sharding": "none"}
        launcher = self.settings.launcher.model_copy(update=alone)
        return self.settings.model_copy(update={"launcher": launcher})


def main(arguments: list[str]) -> None:
    """Trains what is missing, seed by seed, and writes the tables after each seed."""
    options = _options(arguments)
    settings = load_settings(options.params)
    if not options.ingest.exists():
        raise ConcordError(f"{options.ingest}: missing. Create it first: make run, or python -m components ingest")
    study, kind = STUDIES[options.study](settings), "ablation" if options.study == "claim" else options.study
    out = options.out or Path("results") / f"{kind}-{settings.experiment}"
    work = _work_folder(options.work / settings.experiment, settings, options.ingest)
    plan = Plan(study, options.study, settings, options.ingest, options.split, work, options.jobs)
    from components.commands.ablation.comparison import Judged  # takes seconds

    judged: dict[int, Judged] = {}
    with work_lock(work / ".lock", "this ablation"):
        for number, seed in enumerate(options.seeds, 1):
            console.print(f"seed {seed} ({number} of {len(options.seeds)}) in {work}")
            train_seed(plan, options.seeds[number - 1 :])
            write_results(plan, options.seeds, judged, out)
            console.print(f"Wrote {out}.md and {out}.json from {len(judged)} seeds")


def train_seed(plan: Plan, seeds: Sequence[int]) -> None:
    """Trains and reads the models of the first seed: its warm start, the arms that set a time, those that fill it.

    A warm start does not wait alone: those of the following seeds are trained beside it.
    """
    arms, seed = plan.study.arms, seeds[0]
    if not plan.warm_start(seed).answers.exists():
        _parallel(train_and_read, [plan.warm_start(each) for each in seeds[: plan.jobs]], plan.jobs)
    first = [name for name in arms if arms[name].as_long_as is None]
    _parallel(train_and_read, [plan.arm(name, seed) for name in first], plan.jobs)
    rest = {name: plan.arm(name, seed) for name, arm in arms.items() if arm.as_long_as}
    per_step = dict(zip(rest, _parallel(measure_step, list(rest.values()), plan.jobs), strict=True))
    fitted = []
    for name, job in rest.items():
        seconds = training_time(plan.arm(str(arms[name].as_long_as), seed).folder)[1]
        fitted.append(job.with_steps(steps_within(seconds, per_step[name])))
    _parallel(train_and_read, fitted, plan.jobs)


def training_time(folder: Path) -> tuple[int, float]:
    """Steps of a trained model, and their seconds by the training clock."""
    from components.commands.ablation.stopwatch import Tally

    steps = int(json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["steps"])
    return steps, steps * Tally.read(folder / TIME).per_step


def write_results(plan: Plan, seeds: Sequence[int], judged: dict[int, Any], out: Path) -> None:
    """Writes the tables of all complete seeds.

    Args:
        judged: seeds that were judged before; those that are new are added.
    """
    from components.commands.ablation.comparison import Images, compare, judge_seed
    from components.commands.ablation.table import write_tables

    complete = [seed for seed in seeds if plan.is_complete(seed)]
    for seed in complete:
        if seed not in judged:
            judged[seed] = judge_seed(plan.settings, plan.study, plan.models(seed), plan.split)
    images = Images.read(plan.ingest, plan.models(complete[0])[WARM], plan.split)
    result = compare(
        plan.study, {seed: judged[seed] for seed in complete}, images, plan.settings.registry.tolerance_many
    )
    times = {name: [training_time(plan.models(seed)[name]) for seed in complete] for name in plan.models(complete[0])}
    result |= {
        "split": plan.split,
        "steps": {name: [steps for steps, _ in each] for name, each in times.items()},
        "seconds": {name: [round(seconds, 1) for _, seconds in each] for name, each in times.items()},
    }
    write_tables(out, plan.settings, plan.study, result)


def _parallel(function: Callable[[Job], T], jobs: list[Job], count: int) -> list[T]:
    """Runs each job in a process of its own, `count` at a time: no allocator or random state is inherited."""

    def in_own_process(job: Job) -> T:
        with process_pool(1) as pool:
            return pool.submit(function, job).result()

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(in_own_process, jobs))


def _work_folder(parent: Path, settings: Settings, ingest: Path) -> Path:
    from components.shared.tracking.lineage import code_identity, compute_lineage
    from components.shared.tracking.model_revision import check_revision
    from components.shared.training.checkpoints import state_folder  # takes seconds

    check_revision(settings.model)
    tree, code = settings.tree(), {**code_identity(STEPS["sft"]), **code_identity(STEPS["grpo"])}
    params = {name: tree[name] for name in ("task", "model", "sft", "grpo", "evaluate")}
    lineage = compute_lineage(STEPS["sft"], settings, {"ingest": ingest})
    return state_folder(parent, replace(lineage, code=code, params=params))


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m components ablation", description=__doc__)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="settings (default: %(default)s)")
    parser.add_argument(
        "--ingest", type=Path, default=Path("artifacts/ingest"), help="row shards (default: %(default)s)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="default: 0 1 2 3 4")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="arms trained in parallel (default: one per core)"
    )
    parser.add_argument(
        "--work", type=Path, default=Path(".checkpoints/ablation"), help="trained models (default: %(default)s)"
    )
    parser.add_argument(
        "--split", choices=("test", "val"), default="test", help="val: a trial that does not use the test split"
    )
    parser.add_argument("--study", choices=STUDIES, default="claim", help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=None, help="results file (default: results/STUDY-EXPERIMENT)")
    return parser.parse_args(arguments)
