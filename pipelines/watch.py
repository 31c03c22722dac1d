"""Watches a run on a cluster: prints each change of a step's state, why a step waits, and how the run ended."""

import os
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich.text import Text

from components.console import console
from components.errors import ConcordError
from components.shared.io.secrets import masked
from pipelines.connection import kubeflow_errors
from pipelines.run_pods import RunPods
from pipelines.run_state import ENDED, StepState, ended_by_person, step_states, tasks_of
from pipelines.stores import TRACKING

if TYPE_CHECKING:
    from kfp import Client

FINAL_STATES = ("SUCCEEDED", "FAILED", "SKIPPED", "CANCELED")
MAX_FAILED_POLLS = 10  # consecutive requests that may fail while a run is watched
PENDING_SECONDS = 60.0  # a step may be PENDING so long before the reason is asked for, and asked for again
ROOT = "root"  # Kubeflow's driver of the whole run


@dataclass
class _Watched:
    """What has been printed, and since when steps wait.

    Attributes:
        states: step -> the state printed last.
        pending: step -> when it was first seen PENDING, in seconds of the monotonic clock.
        asked: step -> when the reason was asked for last.
        printed: steps and reasons; each pair is printed once.
    """

    states: dict[str, str] = field(default_factory=dict)
    pending: dict[str, float] = field(default_factory=dict)
    asked: dict[str, float] = field(default_factory=dict)
    printed: set[tuple[str, str]] = field(default_factory=set)


def watch(client: "Client", run_id: str, pods: RunPods, poll: float, hours: float | None) -> int:
    """Prints each change of a step's state until the run ends, and the reason where a step stays PENDING.

    Args:
        pods: the run's pods.
        poll: seconds between two requests.
        hours: how long to watch; None for no limit.

    Returns:
        0; the run succeeded.

    Raises:
        ConcordError: the run did not succeed, did not end within `hours`, or too many requests in a row failed.
    """
    watched = _Watched()
    end = None if hours is None else time.monotonic() + hours * 3600
    missed = 0
    while True:
        try:
            with kubeflow_errors(f"read the state of run {run_id}"):
                run = client.get_run(run_id)
            missed = 0
        except ConcordError as error:
            missed += 1
            if missed >= MAX_FAILED_POLLS or (end is not None and time.monotonic() > end):
                raise ConcordError(f"{error} The run continues, but is no longer watched.") from None
            time.sleep(poll)
            continue
        _print_changes(run, pods, watched)
        if run.state in FINAL_STATES:
            _close_mlflow_runs(run)
            return _report_end(client, run, pods)
        if end is not None and time.monotonic() > end:
            raise ConcordError(
                f"run {run_id}: still {run.state or 'PENDING'} after {hours:g} hours. The run continues, but is no "
                "longer watched."
            )
        time.sleep(poll)


def _print_changes(run: Any, pods: RunPods, watched: _Watched) -> None:
    """Prints states that are new, and for steps that have been PENDING for a while the reason if it is new."""
    states: dict[str, StepState] = step_states(run)
    shown = {step: str(state) for step, state in states.items()}
    if run.state == "CANCELING":
        shown["run"] = "CANCELING, somebody ends it"
    for name, text in shown.items():
        if watched.states.get(name) != text:
            watched.states[name] = text
            _print(name, text)
    for step, state in states.items():
        if run.state in (*FINAL_STATES, "CANCELING") or not _due(step, state, watched):
            continue
        try:
            reason = pods.why(step)
        except (ConcordError, LookupError) as error:
            reason = f"the reason is unknown. {error}"
        if reason and (step, reason) not in watched.printed:
            watched.printed.add((step, reason))
            _print(step, f"PENDING: {reason}")


def _due(step: str, state: StepState, watched: _Watched) -> bool:
    """Whether to ask now why the step is PENDING."""
    if state.name != "PENDING":
        watched.pending.pop(step, None)
        return False
    now = time.monotonic()
    lasted = now - watched.pending.setdefault(step, now)
    if state.pending_since:
        lasted = max(lasted, (datetime.now(UTC) - state.pending_since).total_seconds())
    if lasted < PENDING_SECONDS or now - watched.asked.get(step, -PENDING_SECONDS) < PENDING_SECONDS:
        return False
    watched.asked[step] = now
    return True


def _print(name: str, text: str) -> None:
    console.print(f"{time.strftime('%H:%M:%S')}  {name}: {text}", markup=False, soft_wrap=True)


def _close_mlflow_runs(run: Any) -> None:
    """Closes what the ended run left RUNNING in MLflow, such as the run of a pod that was lost with its node.

    Only if MLFLOW_TRACKING_URI says here where the runs are.
    """
    if TRACKING not in os.environ:
        return
    from components.shared.tracking.connection import connect
    from components.shared.tracking.past_runs import close_runs_of

    status = "FAILED" if run.state == "FAILED" and not ended_by_person(run) else "KILLED"
    try:
        closed = close_runs_of(connect(), run.run_id, status)
    except ConcordError as error:
        console.print(Text.assemble(("warning", "yellow"), f" {error}"), soft_wrap=True)
        return
    if closed:
        console.print(f"MLflow: runs that were still RUNNING, now {status}: {closed}", markup=False)


def _report_end(client: "Client", run: Any, pods: RunPods) -> int:
    """Returns 0 if the run succeeded; raises ConcordError if not, after printing the last log lines of failed steps."""
    if run.state == "SUCCEEDED":
        console.print(f"run {run.run_id}: SUCCEEDED", markup=False)
        return 0
    failed = [step for step, state in step_states(run).items() if state.name in ENDED]
    where = f" at {', '.join(failed)}" if failed else ""
    if ended_by_person(run):
        raise ConcordError(f"run {run.run_id}: {run.state}{where}: ended by a person. Submit it again to go on.")
    if not failed and any(task.display_name == f"{ROOT}-driver" and task.state in ENDED for task in tasks_of(run)):
        failed = [ROOT]
    reasons = [task.error.message for task in tasks_of(run) if task.error and task.error.message]
    if run.error and run.error.message:
        reasons.append(run.error.message)
    for step in failed:
        _print_log(client, run, pods, step)
        try:
            reasons.append(pods.why(step))
        except (ConcordError, LookupError) as error:
            _print(step, f"why it failed is unknown. {error}")
    why = masked("; ".join(dict.fromkeys(reason for reason in reasons if reason)))
    raise ConcordError(
        f"run {run.run_id}: {run.state}{where}{f': {why}' if why else ''}. The logs are on the run's page."
    )


def _print_log(client: "Client", run: Any, pods: RunPods, step: str) -> None:
    try:
        lines = pods.log(client, run, step)
    except ConcordError as error:
        _print(step, f"its log cannot be read. {error}")
        return
    _print(step, f"the last {len(lines)} lines of its log:")
    for line in lines:
        console.print(f"  {line}", markup=False, soft_wrap=True)
