"""`python -m components ablation`: trains variants from one warm start over several seeds and compares their errors.

Studies: `claim` (continued SFT, GRPO with a per-sample MAE reward and CCC-GRPO, all for the same extra training time),
`advantage` (what the advantages are divided by) and `recent` (anchors of earlier steps with a batch of 8 inputs).
Trained models are kept below --work, in a folder for these settings and inputs, so that an interrupted command resumes
with the models that are missing. Measured times are only fair if nothing else runs on the machine.
"""

import argparse
import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from components.commands.ablation.comparison import compare, predict_split
from components.commands.ablation.studies import STUDIES
from components.commands.ablation.table import write_tables
from components.commands.ablation.variants import TrainingJob, train_variant
from components.console import console
from components.errors import ConcordError
from components.settings import load_settings


def main(arguments: list[str]) -> None:
    """Trains the missing variants, then writes the tables."""
    parser = argparse.ArgumentParser(prog="python -m components ablation", description=__doc__)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="settings (default: %(default)s)")
    parser.add_argument(
        "--ingest", type=Path, default=Path("artifacts/ingest"), help="row shards (default: %(default)s)"
    )
    parser.add_argument("--sft", type=Path, default=Path("artifacts/sft"), help="the warm start (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="trainings in parallel (default: one per core)"
    )
    parser.add_argument(
        "--work", type=Path, default=Path(".checkpoints/ablation"), help="trained models (default: %(default)s)"
    )
    parser.add_argument(
        "--split", choices=("test", "val"), default="test", help="val: a trial that does not use the test split"
    )
    parser.add_argument("--study", choices=STUDIES, default="claim", help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=None, help="results file (default: results/STUDY-EXPERIMENT)")
    options = parser.parse_args(arguments)
    settings = load_settings(options.params)
    for folder, step in ((options.ingest, "ingest"), (options.sft, "sft")):
        if not folder.exists():
            raise ConcordError(f"{folder}: missing. Create it first: make run, or python -m components {step}")
    study, kind = STUDIES[options.study](settings), "ablation" if options.study == "claim" else options.study
    out = options.out or Path("results") / f"{kind}-{settings.experiment}"
    from components.shared.training.checkpoints import state_folder  # takes seconds

    sections, inputs = ("task", "model", "sft", "grpo", "evaluate"), {"ingest": options.ingest, "sft": options.sft}
    work = state_folder(options.work / settings.experiment / options.study, settings, sections, inputs)
    threads = max((os.cpu_count() or 1) // options.jobs, 1)

    def job(variant: str, seed: int, seconds: float | None = None) -> TrainingJob:
        folder = work / f"{variant}-{seed}"
        return TrainingJob(
            study.variants[variant], seed, settings, options.ingest, options.sft, folder, threads, seconds
        )

    # Spawned processes: each sets its own number of threads and inherits no allocator or random state.
    with ProcessPoolExecutor(
        options.jobs, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1
    ) as pool:
        by_time = [name for name, variant in study.variants.items() if variant.grpo is None]
        grpo = [(name, seed) for seed in options.seeds for name in study.variants if name not in by_time]
        rest = f", then {len(by_time) * len(options.seeds)} of SFT for the same time" if by_time else ""
        console.print(f"{len(grpo)} GRPO trainings, {options.jobs} in parallel{rest}")
        seconds = dict(zip(grpo, pool.map(train_variant, [job(*one) for one in grpo]), strict=True))
        mean = {s: float(np.mean([seconds[name, seed] for name, seed in grpo if seed == s])) for s in options.seeds}
        sft = [(name, seed) for name in by_time for seed in options.seeds]
        seconds |= dict(
            zip(sft, pool.map(train_variant, [job(name, seed, mean[seed]) for name, seed in sft]), strict=True)
        )
        models = {"warm": options.sft} | {f"{name}-{seed}": work / f"{name}-{seed}" for name, seed in seconds}
        files = {name: work / f"predictions-{options.split}-{name}.parquet" for name in models}
        tasks = [(settings, options.ingest, options.split, models[name], files[name], threads) for name in models]
        list(pool.map(predict_split, tasks))
    result: dict[str, Any] = compare(settings, study, options.ingest, options.split, files, options.seeds)
    result["seconds"] = {f"{name}-{seed}": round(value, 1) for (name, seed), value in sorted(seconds.items())}
    steps = {name: json.loads((folder / "metrics.json").read_text())["steps"] for name, folder in models.items()}
    result["steps"] = steps
    write_tables(out, settings, study, result)
    console.print(f"Wrote {out}.md and {out}.json")
