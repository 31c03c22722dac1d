"""`python -m components bench data`: times ingest and validate against a bare loop, alternating, on many small images.

The bare loop is one process that reads the files, decodes them with Pillow and writes the same bytes to Parquet. Ingest
and validate run as commands, as a user calls them. The images are drawn once and reused by the next call.
"""

import argparse
import tempfile
from pathlib import Path

from components.console import console
from components.settings import load_settings


def main(arguments: list[str]) -> None:
    """Measures every size and writes the tables."""
    folder = Path(tempfile.gettempdir(), "concord-bench-data")
    parser = argparse.ArgumentParser(prog="python -m components bench data", description=__doc__)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="settings (default: %(default)s)")
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 50_000, 200_000], help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=folder, help="of the images (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("results/bench-data"), help="results file (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    from components.commands.bench.data_measure import SIDES, Bench  # takes a second
    from components.commands.bench.data_table import write_data_tables

    bench = Bench(options.folder, load_settings(options.params))
    results = []
    for rows in sorted(set(options.rows)):
        console.print(f"{rows:,} rows: {options.rounds} rounds of ingest and validate, and of the bare loop")
        results.append(bench.measure(rows, options.rounds))
        seconds = [results[-1][side]["seconds"]["median"] for side in SIDES]
        console.print(
            f"  ours {seconds[0]:.1f} s, bare loop {seconds[1]:.1f} s: {seconds[1] / seconds[0]:.2f} times as fast"
        )
    write_data_tables(options.out, results)
    console.print(f"Wrote {options.out}.md and {options.out}.json")
