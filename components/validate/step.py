"""Checks the row shards against the expectations; stops the run if one that is an error is not met."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass
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
    content_checks,
    drift_checks,
    field_checks,
    leakage_checks,
    row_checks,
    subject_checks,
    with_severities,
)
from components.validate.drift import PROFILE_ARTIFACT, DriftReport, measure_drift
from components.validate.profile import profile
from components.validate.suite import MAX_EXAMPLES, Outcome, Suite, import_great_expectations
from components.validate.tables import Summary, field_table, row_table, summarise, valid_targets

MAX_FAILURES_SHOWN = 3


@dataclass(frozen=True)
class SplitReport:
    """The results for the splits.

    Attributes:
        outcomes: of the checks of fields, rows and splits.
        rows: as from `row_table`; empty if the shards cannot be read.
        summary: figures over all splits.
        histogram: of the valid labels.
        profile: see profile.py.
    """

    outcomes: list[Outcome]
    rows: pd.DataFrame
    summary: Summary
    histogram: list[LabelBin]
    profile: dict[str, Any]


def run(settings: Settings, track: StepRun, *, ingest: Path, out: Path) -> None:
    """Checks the row shards against the expectations; writes result.json and metrics.json to `out`.

    Reports are written whether or not the expectations are met: Data Docs to reports/data_docs beside the artifacts,
    and result.json, tail.png, tail.json, profile.json and drift.json to reports/validate. Both folders are stored with
    the MLflow run. They depend on the time and on the registry, so `out` holds none of it: the same shards and settings
    give the same bytes in `out`.

    Args:
        ingest: row shards.

    Raises:
        ConcordError: an expectation with severity `error` is not met. The message names the rows and the remedy; `out`
            is left unchanged.
    """
    suite, report = _check_splits(settings, ingest)
    drift, drift_outcomes = _check_drift(suite, settings, track, report)
    reports = out.parent.parent / "reports"
    docs = suite.write_docs(reports / "data_docs")
    _write_reports(reports / "validate", report, drift, drift_outcomes, settings.task)
    console.print(f"Data Docs: {docs}", markup=False, soft_wrap=True)
    console.print(f"Drift: {drift.summary}", markup=False, soft_wrap=True)
    outcomes = [*report.outcomes, *drift_outcomes]
    examples = report.summary.examples | drift.examples
    unmet = [outcome for outcome in outcomes if not outcome.success]
    if warned := [outcome for outcome in unmet if outcome.check.severity == "warning"]:
        text = failure_message(ingest, warned, len(outcomes), examples)
        console.print(Text.assemble(("warning", "bold yellow"), f" {printable(text)}"), soft_wrap=True)
    failed = [outcome for outcome in unmet if outcome.check.severity == "error"]
    with suppress(ConcordError) if failed else nullcontext():  # an error of the data is reported first
        _attach_reports(track, reports, drift)
    if failed:
        raise ConcordError(failure_message(ingest, failed, len(outcomes), examples))
    with new_folder(out) as folder:
        write_json(folder / "result.json", outcomes_to_json(report.outcomes))
        write_json(metrics_file(folder), _metrics(report))
    warnings = f", {len(warned)} not met (warnings)" if warned else ""
    console.print(f"{len(outcomes) - len(warned)} expectations met by {len(report.rows)} rows{warnings}")


def _check_splits(settings: Settings, ingest: Path) -> tuple[Suite, SplitReport]:
    """Runs the checks of fields, rows and splits."""
    task, limits = settings.task, settings.validation
    fields = field_table(ingest)
    rows, summary = pd.DataFrame(), Summary({}, {})
    readable = bool((fields["expected"] == fields["found"]).all())
    with ThreadPoolExecutor(1) as background:
        background.submit(import_great_expectations)  # takes seconds, while the images are decoded
        if readable:
            rows = row_table(ingest, task)
            summary = summarise(rows, task, limits.near_bits)
    suite = Suite()
    outcomes = suite.run("fields", fields, field_checks())
    if not readable:
        return suite, SplitReport(outcomes, rows, summary, [], {})
    outcomes += suite.run("rows", rows.drop(columns="hash"), with_severities(row_checks(task, limits), limits.severity))
    checks = [*content_checks(), *leakage_checks(limits), *balance_checks(task, limits)]
    if "subjects_in_two_splits" in summary.figures:  # only if subjects are known
        checks += subject_checks()
    outcomes += suite.run("summary", summary.table, with_severities(checks, limits.severity))
    histogram = label_histogram(valid_targets(rows, task), task)
    return suite, SplitReport(outcomes, rows, summary, histogram, profile(rows, histogram, task))


def _check_drift(
    suite: Suite, settings: Settings, track: StepRun, report: SplitReport
) -> tuple[DriftReport, list[Outcome]]:
    """Measures the drift from the champion's data and runs the drift checks."""
    if report.rows.empty:
        return DriftReport("not compared with a champion's data: the rows cannot be read"), []
    drift = measure_drift(settings, track, report.profile)
    limits = settings.validation.drift
    if limits is None or not drift.compared:
        return drift, []
    checks = [check for check in drift_checks(limits, settings.registered_model) if check.name in drift.figures]
    return drift, suite.run(
        "drift", drift.table, with_severities(checks, settings.validation.severity)
    ) if checks else []


def _write_reports(
    folder: Path, report: SplitReport, drift: DriftReport, drift_outcomes: Sequence[Outcome], task: Task
) -> None:
    """Writes the reports other than the Data Docs."""
    with new_folder(folder) as new:
        write_json(new / "result.json", outcomes_to_json([*report.outcomes, *drift_outcomes]))
        write_json(new / "drift.json", drift.to_json())
        if not report.rows.empty:
            write_json(new / Path(PROFILE_ARTIFACT).name, report.profile)
            write_json(new / "tail.json", tail_figures(report.histogram, task))
            write_tail(report.histogram, task, new / "tail.png")


def _attach_reports(track: StepRun, reports: Path, drift: DriftReport) -> None:
    """Stores the reports, the Data Docs and the drift indices with the MLflow run."""
    track.attach(reports / "validate", Path(PROFILE_ARTIFACT).parent.name)
    track.attach(reports / "data_docs", "data_docs")
    track.log(drift.metrics, step=0)


def failure_message(ingest: Path, failed: list[Outcome], total: int, examples: dict[str, list[str]]) -> str:
    """Returns a message that fits one screen: the first expectations that are not met, each with rows and remedy.

    Args:
        ingest: the row shards.
        failed: outcomes that are not met.
        total: number of all outcomes.
        examples: lines for summary and drift checks.
    """
    lines = [f"{ingest}: {len(failed)} of {total} expectations not met"]
    for outcome in failed[:MAX_FAILURES_SHOWN]:
        check, observed = outcome.check, outcome.observed
        lines.append(f"- Expected: {check.description}. Found: {_observed(observed)}.")
        lines += [f"    {_row_line(row, outcome)}" for row in outcome.rows] or [
            f"    {line}" for line in examples.get(check.name, [])
        ]
        if observed.get("unexpected", 0) > MAX_EXAMPLES:
            lines.append(f"    and {observed['unexpected'] - MAX_EXAMPLES} more")
        lines.append(f"  {check.remedy}")
    if len(failed) > MAX_FAILURES_SHOWN:
        names = ", ".join(outcome.check.name for outcome in failed[MAX_FAILURES_SHOWN:])
        lines.append(f"- and {len(failed) - MAX_FAILURES_SHOWN} more: {names}; the Data Docs show them")
    return "\n".join(lines)


def _observed(observed: dict[str, Any]) -> str:
    if "rows" in observed:
        return f"{observed['unexpected']} of {observed['rows']} do not meet this"
    value = observed["value"]
    return f"{value:.3g}" if isinstance(value, float) and value < 1000 else f"{value:.0f}"


def _row_line(row: dict[str, Any], outcome: Outcome) -> str:
    if "shard" in row:
        return f"{row['shard']}: field {row['field']}: type expected {row['expected']}, found {row['found']}"
    column = outcome.check.shown_column or outcome.check.arguments["column"]
    name, origin = str(row["id"]), str(row["origin"])
    origin = origin.replace("\n", " ")
    source = origin if origin.endswith(f" {name}") else f"{origin}, id {name}"
    return f"{source[:100]} ({row['split']}): {'' if column == 'fault' else f'{column} '}{row.get(column)}"


def outcomes_to_json(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Returns check name -> expectation, description, severity and observed figures."""
    return {
        outcome.check.name: {
            "expectation": outcome.check.expectation,
            "arguments": dict(outcome.check.arguments),
            "words": outcome.check.description,
            "severity": outcome.check.severity,
            "success": outcome.success,
            "observed": outcome.observed,
        }
        for outcome in outcomes
    }


def printable(text: str) -> str:
    """Replaces control characters, which names from files may contain, except line breaks."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)


def _metrics(report: SplitReport) -> dict[str, Any]:
    sides = report.rows[["width", "height"]]
    met = sum(outcome.success for outcome in report.outcomes)
    return {
        "expectations_met": met,
        "warnings": len(report.outcomes) - met,
        "rows": {split: int((report.rows["split"] == split).sum()) for split in SPLITS},
        "smallest_side": int(sides.min().min()),
        "largest_side": int(sides.max().max()),
        **report.summary.figures,
    }
