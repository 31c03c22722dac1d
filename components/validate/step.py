"""Validate: the splits keep what training and evaluation rely on, or the run stops here, in words."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.text import Text

from components.settings import Settings
from components.shared.data.atomic import new_folder, write_json
from components.shared.data.rows import SPLITS
from components.shared.errors import ConcordError
from components.shared.tracking.runs import StepRun
from components.steps import metrics_file
from components.validate.checks import balance_checks, field_checks, leak_checks, row_checks, subject_checks, weighed
from components.validate.suite import EXAMPLES, Outcome, Suite, load
from components.validate.tables import Summary, field_table, row_table, summarise

console = Console(stderr=True, highlight=False)
FAILURES_TOLD = 3


def run(settings: Settings, track: StepRun, *, ingest: Path, out: Path) -> None:
    """Holds the row shards against the expectations; writes result.json and metrics.json to `out`.

    Data Docs go to reports/data_docs beside the artifacts, whether the expectations are met or not.

    Args:
        ingest: row shards.

    Raises:
        ConcordError: an expectation is not met and is no mere warning, with the rows and the remedy; `out` stays as
            it was.
    """
    del track  # no curves
    task, limits = settings.task, settings.validation
    fields = field_table(ingest)
    rows, summary = pd.DataFrame(), Summary({}, {})
    readable = bool((fields["expected"] == fields["found"]).all())
    with ThreadPoolExecutor(1) as aside:
        aside.submit(load)  # takes seconds, in which the images are decoded
        if readable:
            rows = row_table(ingest, task)
            summary = summarise(rows, task, limits.near_bits)
    suite = Suite()
    outcomes = suite.run("fields", fields, field_checks())
    if readable:
        outcomes += suite.run("rows", rows.drop(columns="hash"), weighed(row_checks(task, limits), limits.severity))
        checks = [*leak_checks(limits), *balance_checks(task, limits)]
        if "subjects_in_two_splits" in summary.figures:  # else nobody knows
            checks += subject_checks()
        outcomes += suite.run("summary", summary.table, weighed(checks, limits.severity))
    docs = suite.write_docs(out.parent.parent / "reports" / "data_docs")
    console.print(f"Data Docs: {docs}", markup=False, soft_wrap=True)
    unmet = [outcome for outcome in outcomes if not outcome.success]
    if warned := [outcome for outcome in unmet if outcome.check.severity == "warning"]:
        text = failure(ingest, warned, len(outcomes), summary.examples)
        console.print(Text.assemble(("warning", "bold yellow"), f" {printable(text)}"), soft_wrap=True)
    if failed := [outcome for outcome in unmet if outcome.check.severity == "error"]:
        raise ConcordError(failure(ingest, failed, len(outcomes), summary.examples))
    with new_folder(out) as folder:
        write_json(folder / "result.json", {outcome.check.name: _as_json(outcome) for outcome in outcomes})
        write_json(metrics_file(folder), _metrics(rows, summary, len(outcomes) - len(warned), len(warned)))
    warnings = f", {len(warned)} not met, which is a warning" if warned else ""
    console.print(f"{len(outcomes) - len(warned)} expectations met by {len(rows)} rows{warnings}")


def failure(ingest: Path, failed: list[Outcome], total: int, examples: dict[str, list[str]]) -> str:
    """One screen: the first expectations that are not met, each with rows and remedy.

    Args:
        examples: of the summary's figures.
    """
    lines = [f"{ingest}: {len(failed)} of {total} expectations not met"]
    for outcome in failed[:FAILURES_TOLD]:
        check, observed = outcome.check, outcome.observed
        lines.append(f"- Expected: {check.words}. Found: {_found(observed)}.")
        lines += [f"    {_place(row, outcome)}" for row in outcome.rows] or [
            f"    {line}" for line in examples.get(check.name, [])
        ]
        if observed.get("unexpected", 0) > EXAMPLES:
            lines.append(f"    and {observed['unexpected'] - EXAMPLES} more")
        lines.append(f"  {check.remedy}")
    if len(failed) > FAILURES_TOLD:
        names = ", ".join(outcome.check.name for outcome in failed[FAILURES_TOLD:])
        lines.append(f"- and {len(failed) - FAILURES_TOLD} more: {names}; the Data Docs show them")
    return "\n".join(lines)


def _found(observed: dict[str, Any]) -> str:
    if "rows" in observed:
        return f"{observed['unexpected']} of {observed['rows']} are not so"
    value = observed["value"]
    return f"{value:.3g}" if isinstance(value, float) and value < 1000 else f"{value:.0f}"


def _place(row: dict[str, Any], outcome: Outcome) -> str:
    if "shard" in row:
        return f"{row['shard']}: field {row['field']}: type expected {row['expected']}, found {row['found']}"
    column = outcome.check.tell or outcome.check.arguments["column"]
    name, origin = str(row["id"]), str(row["origin"])
    origin = origin.replace("\n", " ")
    where = origin if origin.endswith(f" {name}") else f"{origin}, id {name}"
    return f"{where[:100]} ({row['split']}): {'' if column == 'fault' else f'{column} '}{row.get(column)}"


def _as_json(outcome: Outcome) -> dict[str, Any]:
    check = outcome.check
    return {
        "expectation": check.expectation,
        "arguments": dict(check.arguments),
        "words": check.words,
        "severity": check.severity,
        "success": outcome.success,
        "observed": outcome.observed,
    }


def printable(text: str) -> str:
    """Names from files may hold control characters; lines are kept apart."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)


def _metrics(rows: pd.DataFrame, summary: Summary, met: int, warnings: int) -> dict[str, Any]:
    sides = rows[["width", "height"]]
    return {
        "expectations_met": met,
        "warnings": warnings,
        "rows": {split: int((rows["split"] == split).sum()) for split in SPLITS},
        "smallest_side": int(sides.min().min()),
        "largest_side": int(sides.max().max()),
        **summary.figures,
    }
