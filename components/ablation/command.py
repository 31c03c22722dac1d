"""`python -m components ablation`: SFT continued, per-sample MAE reward and CCC-GRPO from one warm start.

Each arm gets the same extra training time, over several seeds, and is judged on the same test images. Everything is
kept below --work, a folder for exactly these settings and inputs and in it one an arm, so that a run that was stopped
goes on where it was. Times are fair only where nothing else runs beside.
"""

import argparse
import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console

from components.ablation.arms import Arm, Job, run
from components.ablation.judge import judge, predict
from components.ablation.table import write_tables
from components.settings import load_settings
from components.shared.errors import ConcordError

console = Console(stderr=True, highlight=False)


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
    parser.add_argument("--out", type=Path, default=None, help="results file (default: results/ablation-EXPERIMENT)")
    given = parser.parse_args(words)
    settings = load_settings(given.params)
    for place, maker in ((given.ingest, "ingest"), (given.sft, "sft")):
        if not place.exists():
            raise ConcordError(f"{place}: missing. Make it first: make run, or python -m components {maker}")
    out = given.out or Path("results") / f"ablation-{settings.experiment}"
    from components.shared.vlm.checkpoints import state_folder  # takes seconds

    sections, inputs = ("task", "model", "sft", "grpo", "evaluate"), {"ingest": given.ingest, "sft": given.sft}
    work = state_folder(given.work / settings.experiment, settings, sections, inputs)
    threads = max((os.cpu_count() or 1) // given.jobs, 1)

    def job(arm: Arm, seed: int, seconds: float | None = None) -> Job:
        return Job(arm, seed, settings, given.ingest, given.sft, work / f"{arm}-{seed}", threads, seconds)

    # Fresh processes: each sets its own number of threads, and none inherits another's allocator or generator.
    with ProcessPoolExecutor(
        given.jobs, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1
    ) as pool:
        arms: tuple[Arm, ...] = ("ccc", "mae")
        reinforced = [job(arm, seed) for seed in given.seeds for arm in arms]
        console.print(f"{len(reinforced)} runs of GRPO, {given.jobs} at a time, then {len(given.seeds)} of SFT as long")
        took = dict(zip(((j.arm, j.seed) for j in reinforced), pool.map(run, reinforced), strict=True))
        continued = [job("sft", seed, (took["ccc", seed] + took["mae", seed]) / 2) for seed in given.seeds]
        took |= dict(zip(((j.arm, j.seed) for j in continued), pool.map(run, continued), strict=True))
        models = {"warm": given.sft} | {f"{arm}-{seed}": work / f"{arm}-{seed}" for arm, seed in took}
        places = {name: work / f"predictions-{given.split}-{name}.parquet" for name in models}
        tasks = [(settings, given.ingest, given.split, models[name], places[name], threads) for name in models]
        list(pool.map(predict, tasks))
    result: dict[str, Any] = judge(settings, given.ingest, given.split, places, given.seeds)
    result["seconds"] = {f"{arm}-{seed}": round(value, 1) for (arm, seed), value in sorted(took.items())}
    steps = {name: json.loads((folder / "metrics.json").read_text())["steps"] for name, folder in models.items()}
    result["steps"] = steps
    write_tables(out, settings, result)
    console.print(f"{out}.md, {out}.json")
