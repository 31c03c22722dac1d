"""`python -m components bench data`: ingest and validate against a bare loop, in alternation, on many small pictures.

The bare loop is one process that reads the files, decodes them with Pillow and writes the same bytes to Parquet. Ours
are the two steps as a person calls them. Pictures are drawn once and kept for the next call.
"""

import argparse
import tempfile
from pathlib import Path

from components.console import console
from components.settings import load_settings


def main(words: list[str]) -> None:
    """Measures every size and writes the table."""
    kept = Path(tempfile.gettempdir(), "concord-bench-data")
    parser = argparse.ArgumentParser(prog="python -m components bench data", description=__doc__)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="settings (default: %(default)s)")
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 50_000, 200_000], help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="of each, in alternation (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=kept, help="for the pictures (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("results/bench-data"), help="results (default: %(default)s)")
    given = parser.parse_args(words)
    from components.commands.bench.data_measure import SIDES, Bench  # takes a second
    from components.commands.bench.data_table import write_data_tables

    bench = Bench(given.folder, load_settings(given.params))
    found = []
    for rows in sorted(set(given.rows)):
        console.print(f"{rows:,} rows: {given.rounds} rounds of each")
        found.append(bench.measure(rows, given.rounds))
        seconds = [found[-1][side]["seconds"]["median"] for side in SIDES]
        console.print(f"  {seconds[0]:.1f} s against {seconds[1]:.1f} s: {seconds[1] / seconds[0]:.2f} times")
    write_data_tables(given.out, found)
    console.print(f"{given.out}.md, {given.out}.json")
