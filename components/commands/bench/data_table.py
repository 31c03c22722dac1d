"""The data benchmark's results file: Markdown for people, JSON with every round."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from components.commands.bench.data_measure import STEPS_TIMED
from components.commands.bench.pictures import QUALITY, SIDE
from components.commands.machine import facts_line, machine_facts
from components.shared.io.atomic import write_json, write_text


def write_data_tables(out: Path, found: Sequence[dict[str, Any]]) -> None:
    """Writes OUT.json and OUT.md; `found` is by size, the smallest first."""
    where = machine_facts(("pillow", "pyarrow", "numpy", "great_expectations", "mlflow"))
    write_json(out.with_suffix(".json"), {"sizes": list(found), "machine": where})
    kb = found[-1]["bytes"] / found[-1]["rows"] / 1000
    rounds = len(found[0]["ratios"])
    lines = [
        "# Ingest and validate against a bare loop",
        "",
        f"JPEG, {SIDE} px, quality {QUALITY}, {kb:.0f} KB each, no two alike. Ours: the steps ingest and validate as "
        "commands, with all that they check, hash, split and report. The bare loop: one process that reads the files, "
        "decodes them with Pillow and writes the same bytes to Parquet, no more. All files are read once before each, "
        f"so both read from memory where they fit in it. Medians over {rounds} rounds in alternation (least to most). "
        "Memory: the largest sum of "
        "what the processes of a command have resident.",
        "",
        "| rows | ingest | validate | ours | bare loop | ratio | memory, ours | memory, bare loop |",
        "|---|---|---|---|---|---|---|---|",
        *(_line(size) for size in found),
        "",
    ]
    if len(found) > 1:
        lines += [
            "What each further row costs, between two sizes: where the time is linear, it is the same.",
            "",
            "| from | to | ours | bare loop | ratio | memory, ours |",
            "|---|---|---|---|---|---|",
            *(_further(less, more) for less, more in pairwise(found)),
            "",
        ]
    write_text(out.with_suffix(".md"), "\n".join([*lines, facts_line(where)]) + "\n")


def _line(size: dict[str, Any]) -> str:
    rows, ratios = size["rows"], size["ratios"]
    cells = [f"{rows:,}", *(f"{size['ours']['parts'][step]:.1f} s" for step in STEPS_TIMED)]
    for side in ("ours", "bare"):
        seconds = size[side]["seconds"]
        speeds = (rows / seconds[name] for name in ("median", "most", "least"))
        cells.append("{:,.0f} rows/s ({:,.0f} to {:,.0f})".format(*speeds))
    cells.append(f"{np.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    cells += [f"{size[side]['memory'] / 1e6:,.0f} MB" for side in ("ours", "bare")]
    return f"| {' | '.join(cells)} |"


def _further(less: dict[str, Any], more: dict[str, Any]) -> str:
    rows = more["rows"] - less["rows"]
    ours, bare = (
        (more[side]["seconds"]["median"] - less[side]["seconds"]["median"]) / rows for side in ("ours", "bare")
    )
    memory = (more["ours"]["memory"] - less["ours"]["memory"]) / rows
    cells = [f"{less['rows']:,}", f"{more['rows']:,}", f"{ours * 1e6:.0f} µs", f"{bare * 1e6:.0f} µs"]
    return f"| {' | '.join([*cells, f'{bare / ours:.2f}' if ours > 0 else '', f'{memory:,.0f} bytes'])} |"
