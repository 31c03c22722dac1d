"""`python -m components bench`: times training steps and decoding, alternating in one process.

Steps of our trainers (sampled, means, policy; with and without KL) and of TRL's stock trainer use the same model,
images and settings. Times are wall times of whole steps and of their phases: median, minimum and maximum over rounds.
Memory is the peak allocation of the policy pass without weights and inputs. Decoding compares the answer tree with
`generate`.

`python -m components bench data` measures ingest and validate instead, see data_command.py; `python -m components bench
gpu` measures Qwen2.5-VL-3B with random weights, see gpu_command.py.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from components.console import console
from components.settings import load_settings


def main(arguments: list[str]) -> None:
    """Measures every case and writes the tables; `data` or `gpu` as the first argument measures something else."""
    if arguments[:1] == ["data"]:
        from components.commands.bench.data_command import main as bench_data

        return bench_data(arguments[1:])
    if arguments[:1] == ["gpu"]:
        from components.commands.bench.gpu_command import main as bench_gpu

        return bench_gpu(arguments[1:])
    parser = argparse.ArgumentParser(prog="python -m components bench", description=__doc__)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="settings (default: %(default)s)")
    parser.add_argument("--cases", nargs="+", default=None, help="default: all")
    parser.add_argument("--rounds", type=int, default=5, help="measured steps per trainer (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("results/bench"), help="results file (default: %(default)s)")
    options = parser.parse_args(arguments)
    from components.commands.bench.measure import CASES, measure  # takes seconds
    from components.commands.bench.table import write_tables

    chosen = options.cases or list(CASES)
    unknown = set(chosen) - CASES.keys()
    if unknown:
        parser.error(f"unknown case {', '.join(sorted(unknown))}; choose from {', '.join(CASES)}")
    results: dict[str, Any] = {}
    for name in chosen:
        console.print(f"{name}: {options.rounds} rounds per trainer")
        results[name] = measure(CASES[name], load_settings(options.params), options.rounds)
        stock, exact = np.median(results[name]["ratios"]), np.median(results[name]["of_sampled"]["means-ccc"])
        console.print(f"  TRL / sampled {stock:.1f}, means / sampled {exact:.2f}")
        if decoding := results[name]["decoding"]:
            console.print(f"  decoding by the tree / generate: {np.median(decoding['ratios']):.2f}")
    write_tables(options.out, results)
    console.print(f"Wrote {options.out}.md and {options.out}.json")
