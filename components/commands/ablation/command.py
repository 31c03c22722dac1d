"""`python -m components ablation`: arms from one warm start, over several seeds, judged on the same test images.

Studies: `claim` (SFT continued, GRPO with a per-sample MAE reward, CCC-GRPO, for the same extra training time),
`advantage` (what the advantages are divided by) and `recent` (anchors of earlier steps beside a batch of 8).
Everything is kept below --work, a folder for exactly these settings and inputs and in it one an arm, so that a run that
was stopped goes on where it was. Times are fair only where nothing else runs beside.
"""

import argparse
import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from components.commands.ablation.arms import Job, run
from components.commands.ablation.judge import judge, predict
from components.commands.ablation.studies import STUDIES
from components.commands.ablation.table import write_tables
from components.console import console
from components.errors import ConcordError
from components.settings import load_settings


def main(words: list[str]) -> None:
    """Runs what is missing, then writes the tables."""
    parser = argparse.ArgumentParser(prog="python -m components ablation", description=__doc__)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="settings (default: %(default)s)")
    parser.add_argument(
        "--ingest", type=Path, default=Path("artifacts/ingest"), help="row shards (default: %(default)s)"
    )
    parser.add_argument("--sft", type=Path, default=Path("artifacts/sft"), help="the warm start (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="arms at a time (default: one a core)")
    parser.add_argument("--work", type=Path, default=Path(".checkpoints/ablation"), help="default: %(default)s")
    parser.add_argument("--split", choices=("test", "val"), default="test", help="val: to look without touching test")
    parser.add_argument("--study", choices=STUDIES, default="claim", help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=None, help="results file (default: results/STUDY-EXPERIMENT)")
    given = parser.parse_args(words)
    settings = load_settings(given.params)
    for place, maker in ((given.ingest, "ingest"), (given.sft, "sft")):
        if not place.exists():
            raise ConcordError(f"{place}: missing. Make it first: make run, or python -m components {maker}")
    study, kind = STUDIES[given.study](settings), "ablation" if given.study == "claim" else given.study
    out = given.out or Path("results") / f"{kind}-{settings.experiment}"
    from components.shared.training.checkpoints import state_folder  # takes seconds

    sections, inputs = ("task", "model", "sft", "grpo", "evaluate"), {"ingest": given.ingest, "sft": given.sft}
    work = state_folder(given.work / settings.experiment / given.study, settings, sections, inputs)
    threads = max((os.cpu_count() or 1) // given.jobs, 1)

    def job(arm: str, seed: int, seconds: float | None = None) -> Job:
        folder = work / f"{arm}-{seed}"
        return Job(study.arms[arm], seed, settings, given.ingest, given.sft, folder, threads, seconds)

    # Fresh processes: each sets its own number of threads, and none inherits another's allocator or generator.
    with ProcessPoolExecutor(
        given.jobs, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1
    ) as pool:
        by_clock = [name for name, arm in study.arms.items() if arm.grpo is None]
        reinforced = [(name, seed) for seed in given.seeds for name in study.arms if name not in by_clock]
        rest = f", then {len(by_clock) * len(given.seeds)} of SFT as long" if by_clock else ""
        console.print(f"{len(reinforced)} runs of GRPO, {given.jobs} at a time{rest}")
        took = dict(zip(reinforced, pool.map(run, [job(*one) for one in reinforced]), strict=True))
        mean = {seed: float(np.mean([took[name, s] for name, s in reinforced if s == seed])) for seed in given.seeds}
        continued = [(name, seed) for name in by_clock for seed in given.seeds]
        took |= dict(zip(continued, pool.map(run, [job(*one, mean[one[1]]) for one in continued]), strict=True))
        models = {"warm": given.sft} | {f"{arm}-{seed}": work / f"{arm}-{seed}" for arm, seed in took}
        places = {name: work / f"predictions-{given.split}-{name}.parquet" for name in models}
        tasks = [(settings, given.ingest, given.split, models[name], places[name], threads) for name in models]
        list(pool.map(predict, tasks))
    result: dict[str, Any] = judge(settings, study, given.ingest, given.split, places, given.seeds)
    result["seconds"] = {f"{arm}-{seed}": round(value, 1) for (arm, seed), value in sorted(took.items())}
    steps = {name: json.loads((folder / "metrics.json").read_text())["steps"] for name, folder in models.items()}
    result["steps"] = steps
    write_tables(out, settings, study, result)
    console.print(f"{out}.md, {out}.json")
