"""`python -m components bench`: one GRPO step of ours and of TRL's stock trainer, in alternation, in one process.

Same model, same pictures, same rewards, same settings; what differs is the trainer. Times are wall times of whole steps
and of their phases, medians over rounds with the least and the most. Peak memory is what the policy pass has allocated
at its fullest, weights and inputs left out.

`python -m components bench data` measures ingest and validate instead; see data_command.py.
"""

import argparse
from pathlib import Path
from typing import Any

from components.console import console
from components.settings import load_settings


def main(words: list[str]) -> None:
    """Measures every case and writes the table; `data` as the first word: the data steps."""
    if words[:1] == ["data"]:
        from components.commands.bench.data_command import main as data

        return data(words[1:])
    parser = argparse.ArgumentParser(prog="python -m components bench", description=__doc__)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="settings (default: %(default)s)")
    parser.add_argument("--cases", nargs="+", default=None, help="default: all")
    parser.add_argument("--rounds", type=int, default=5, help="of each trainer, in alternation (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("results/bench"), help="results file (default: %(default)s)")
    given = parser.parse_args(words)
    from components.commands.bench.measure import CASES, measure  # takes seconds
    from components.commands.bench.table import write_tables

    chosen = given.cases or list(CASES)
    unknown = set(chosen) - CASES.keys()
    if unknown:
        parser.error(f"no case called {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    found: dict[str, Any] = {}
    for name in chosen:
        console.print(f"{name}: {given.rounds} rounds of each trainer")
        found[name] = measure(CASES[name], load_settings(given.params), given.rounds)
        step = {which: found[name][which]["phases"]["step"]["median"] for which in ("ours", "trl")}
        console.print(f"  {step['ours']:.2f} s against {step['trl']:.2f} s: {step['trl'] / step['ours']:.1f} times")
    write_tables(given.out, found)
    console.print(f"{given.out}.md, {given.out}.json")
