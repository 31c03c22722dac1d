"""Results files of the data benchmark: Markdown tables, and JSON with every round."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from components.commands.bench.data_measure import STEPS_TIMED
from components.commands.bench.pictures import QUALITY, SIDE
from components.commands.machine import facts_line, machine_facts
from components.shared.io.atomic import write_json, write_text


def write_data_tables(out: Path, results: Sequence[dict[str, Any]]) -> None:
    """Writes OUT.json and OUT.md; `results` has one entry per size, smallest first."""
    facts = machine_facts(("pillow", "pyarrow", "numpy", "great_expectations", "mlflow"))
    write_json(out.with_suffix(".json"), {"sizes": list(results), "machine": facts})
    write_text(out.with_suffix(".md"), data_markdown(results, facts))


def data_markdown(results: Sequence[dict[str, Any]], facts: dict[str, Any]) -> str:
    """Formats the speeds per size, and the cost of each further row between two sizes."""
    kb = results[-1]["bytes"] / results[-1]["rows"] / 1000
    rounds = len(results[0]["ratios"])
    lines = [
        "# Ingest and validate against a bare loop",
        "",
        f"JPEG, {SIDE} px, quality {QUALITY}, {kb:.0f} KB each, all different. Ours: the commands ingest and validate "
        "with all their checks, hashes, splits and reports. The bare loop: one process that only reads files, decodes "
        "them with Pillow and writes the same bytes to Parquet. All files are read once before each run, so that both "
        f"sides read from the page cache if the files fit into memory. Medians over {rounds} alternating rounds "
        "(minimum to maximum). Memory: peak resident memory summed over a command's processes.",
        "",
        "| rows | ingest | validate | ours | bare loop | ratio | memory, ours | memory, bare loop |",
        "|---|---|---|---|---|---|---|---|",
        *(_row(size) for size in results),
        "",
    ]
    if len(results) > 1:
        lines += [
            "Cost of each further row between two sizes; it is constant if the time grows linearly.",
            "",
            "| from | to | ours | bare loop | ratio | memory, ours |",
            "|---|---|---|---|---|---|",
            *(_further_row(less, more) for less, more in pairwise(results)),
            "",
        ]
    return "\n".join([*lines, facts_line(facts)]) + "\n"


def _row(size: dict[str, Any]) -> str:
    rows, ratios = size["rows"], size["ratios"]
    cells = [f"{rows:,}", *(f"{size['ours']['parts'][step]:.1f} s" for step in STEPS_TIMED)]
    for side in ("ours", "bare"):
        seconds = size[side]["seconds"]
        speeds = (rows / seconds[name] for name in ("median", "most", "least"))
        cells.append("{:,.0f} rows/s ({:,.0f} to {:,.0f})".format(*speeds))
    cells.append(f"{np.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    cells += [f"{size[side]['memory'] / 1e6:,.0f} MB" for side in ("ours", "bare")]
    return f"| {' | '.join(cells)} |"


def _further_row(less: dict[str, Any], more: dict[str, Any]) -> str:
    rows = more["rows"] - less["rows"]
    ours, bare = (
        (more[side]["seconds"]["median"] - less[side]["seconds"]["median"]) / rows for side in ("ours", "bare")
    )
    memory = (more["ours"]["memory"] - less["ours"]["memory"]) / rows
    cells = [f"{less['rows']:,}", f"{more['rows']:,}", f"{ours * 1e6:.0f} µs", f"{bare * 1e6:.0f} µs"]
    return f"| {' | '.join([*cells, f'{bare / ours:.2f}' if ours > 0 else '', f'{memory:,.0f} bytes'])} |"
