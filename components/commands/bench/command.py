"""`python -m components bench`: times alternating GRPO steps of our trainer and of TRL's stock trainer in one process.

Both use the same model, images, rewards and settings. Times are wall times of whole steps and of their phases: median,
minimum and maximum over rounds. Memory is the peak allocation of the policy pass without weights and inputs.

`python -m components bench data` measures ingest and validate instead; see data_command.py.
"""

import argparse
from pathlib import Path
from typing import Any

from components.console import console
from components.settings import load_settings


def main(arguments: list[str]) -> None:
    """Measures every case and writes the tables; with `data` as the first argument, measures the data steps."""
    if arguments[:1] == ["data"]:
        from components.commands.bench.data_command import main as bench_data

        return bench_data(arguments[1:])
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
        step = {which: results[name][which]["phases"]["step"]["median"] for which in ("ours", "trl")}
        console.print(
            f"  ours {step['ours']:.2f} s, TRL {step['trl']:.2f} s: {step['trl'] / step['ours']:.1f} times as fast"
        )
    write_tables(options.out, results)
    console.print(f"Wrote {options.out}.md and {options.out}.json")
