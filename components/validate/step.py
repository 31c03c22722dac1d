"""Validate: the splits keep what training and evaluation rely on, or the run stops here, in words."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.text import Text

from components.console import console
from components.errors import ConcordError
from components.settings import Settings, Task
from components.shared.io.atomic import new_folder, write_json
from components.shared.reporting.tail import tail_figures, write_tail
from components.shared.rows.histogram import LabelBin, label_histogram
from components.shared.rows.rows import SPLITS
from components.shared.tracking.step_run import StepRun
from components.steps import metrics_file
from components.validate.checks import (
    balance_checks,
    drift_checks,
    field_checks,
    leak_checks,
    row_checks,
    subject_checks,
    weighed,
)
from components.validate.drift import ARTIFACT, Drift, drift
from components.validate.profile import profile
from components.validate.suite import EXAMPLES, Outcome, Suite, load
from components.validate.tables import Summary, field_table, row_table, summarise, valid_targets

FAILURES_TOLD = 3


@dataclass(frozen=True)
class SplitReport:
    """What came of the splits' expectations.

    Attributes:
        rows: as `row_table` gives it; empty where the shards cannot be read.
        histogram: of the labels that are valid.
        profile: the data in numbers, for later versions to be held against.
    """

    outcomes: list[Outcome]
    rows: pd.DataFrame
    summary: Summary
    histogram: list[LabelBin]
    profile: dict[str, Any]


def run(settings: Settings, track: StepRun, *, ingest: Path, out: Path) -> None:
    """Holds the row shards against the expectations; writes result.json and metrics.json to `out`.

    For people, whether the expectations are met or not: Data Docs in reports/data_docs beside the artifacts, and in
    reports/validate result.json, the tail (tail.png, tail.json), profile.json and drift.json. Both folders are kept
    with the run in MLflow. They hold what depends on the hour and on the registry, so nothing of it is in `out`: the
    same shards and settings give the same bytes there.

    Args:
        ingest: row shards.

    Raises:
        ConcordError: an expectation is not met and is no mere warning, with the rows and the remedy; `out` stays as
            it was.
    """
    suite, found = _splits(settings, ingest)
    since, drifted = _since_champion(suite, settings, track, found)
    reports = out.parent.parent / "reports"
    docs = suite.write_docs(reports / "data_docs")
    _write_report(reports / "validate", found, since, drifted, settings.task)
    console.print(f"Data Docs: {docs}", markup=False, soft_wrap=True)
    console.print(f"Drift: {since.words}", markup=False, soft_wrap=True)
    outcomes = [*found.outcomes, *drifted]
    examples = found.summary.examples | since.examples
    unmet = [outcome for outcome in outcomes if not outcome.success]
    if warned := [outcome for outcome in unmet if outcome.check.severity == "warning"]:
        text = failure(ingest, warned, len(outcomes), examples)
        console.print(Text.assemble(("warning", "bold yellow"), f" {printable(text)}"), soft_wrap=True)
    failed = [outcome for outcome in unmet if outcome.check.severity == "error"]
    with suppress(ConcordError) if failed else nullcontext():  # what is wrong with the data is the one to tell
        _keep(track, reports, since)
    if failed:
        raise ConcordError(failure(ingest, failed, len(outcomes), examples))
    with new_folder(out) as folder:
        write_json(folder / "result.json", as_json(found.outcomes))
        write_json(metrics_file(folder), _metrics(found))
    warnings = f", {len(warned)} not met, which is a warning" if warned else ""
    console.print(f"{len(outcomes) - len(warned)} expectations met by {len(found.rows)} rows{warnings}")


def _splits(settings: Settings, ingest: Path) -> tuple[Suite, SplitReport]:
    """The shards, held against what is expected of fields, rows and splits."""
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
    if not readable:
        return suite, SplitReport(outcomes, rows, summary, [], {})
    outcomes += suite.run("rows", rows.drop(columns="hash"), weighed(row_checks(task, limits), limits.severity))
    checks = [*leak_checks(limits), *balance_checks(task, limits)]
    if "subjects_in_two_splits" in summary.figures:  # else nobody knows
        checks += subject_checks()
    outcomes += suite.run("summary", summary.table, weighed(checks, limits.severity))
    histogram = label_histogram(valid_targets(rows, task), task)
    return suite, SplitReport(outcomes, rows, summary, histogram, profile(rows, histogram, task))


def _since_champion(
    suite: Suite, settings: Settings, track: StepRun, found: SplitReport
) -> tuple[Drift, list[Outcome]]:
    """How the data differ from those of the champion, and what came of the expectations about it."""
    if found.rows.empty:
        return Drift("not compared with a champion's data: the rows cannot be read"), []
    since = drift(settings, track, found.profile)
    limits = settings.validation
    checks = [check for check in drift_checks(limits) if check.name in since.figures] if since.compared else []
    return since, suite.run("drift", since.table, weighed(checks, limits.severity)) if checks else []


def _write_report(folder: Path, found: SplitReport, since: Drift, drifted: Sequence[Outcome], task: Task) -> None:
    """What a person looks at, beside the Data Docs."""
    with new_folder(folder) as place:
        write_json(place / "result.json", as_json([*found.outcomes, *drifted]))
        write_json(place / "drift.json", asdict(since))
        if not found.rows.empty:
            write_json(place / Path(ARTIFACT).name, found.profile)
            write_json(place / "tail.json", tail_figures(found.histogram, task))
            write_tail(found.histogram, task, place / "tail.png")


def _keep(track: StepRun, reports: Path, since: Drift) -> None:
    """Result, tail, drift and Data Docs with the run, so that its page in MLflow has them all."""
    track.attach(reports / "validate", Path(ARTIFACT).parent.name)
    track.attach(reports / "data_docs", "data_docs")
    track.log(since.indices, step=0)


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


def as_json(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Check's name -> what was expected, what was found, and how much that matters."""
    return {
        outcome.check.name: {
            "expectation": outcome.check.expectation,
            "arguments": dict(outcome.check.arguments),
            "words": outcome.check.words,
            "severity": outcome.check.severity,
            "success": outcome.success,
            "observed": outcome.observed,
        }
        for outcome in outcomes
    }


def printable(text: str) -> str:
    """Names from files may hold control characters; lines are kept apart."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)


def _metrics(found: SplitReport) -> dict[str, Any]:
    sides = found.rows[["width", "height"]]
    met = sum(outcome.success for outcome in found.outcomes)
    return {
        "expectations_met": met,
        "warnings": len(found.outcomes) - met,
        "rows": {split: int((found.rows["split"] == split).sum()) for split in SPLITS},
        "smallest_side": int(sides.min().min()),
        "largest_side": int(sides.max().max()),
        **found.summary.figures,
    }
