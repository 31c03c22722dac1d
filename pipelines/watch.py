"""Watches a run on a cluster: prints each change of a step's state, and how the run ended."""

import time
from typing import TYPE_CHECKING, Any

from components.console import console
from components.errors import ConcordError
from components.shared.io.secrets import masked
from components.steps import STEPS
from pipelines.connection import kubeflow_errors

if TYPE_CHECKING:
    from kfp import Client

FINAL_STATES = ("SUCCEEDED", "FAILED", "SKIPPED", "CANCELED")
MAX_FAILED_POLLS = 10  # consecutive requests that may fail while a run is watched


def watch(client: "Client", run_id: str, poll: float, hours: float | None) -> int:
    """Prints each change of a step's state until the run ends.

    Args:
        poll: seconds between two requests.
        hours: how long to watch; None for no limit.

    Returns:
        0; the run succeeded.

    Raises:
        ConcordError: the run did not succeed, did not end within `hours`, or too many requests in a row failed.
    """
    seen: dict[str, str] = {}
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
        _print_changes(run, seen)
        if run.state in FINAL_STATES:
            return _report_end(run, seen)
        if end is not None and time.monotonic() > end:
            raise ConcordError(
                f"run {run_id}: still {run.state or 'PENDING'} after {hours:g} hours. The run continues, but is no "
                "longer watched."
            )
        time.sleep(poll)


def _print_changes(run: Any, seen: dict[str, str]) -> None:
    """Prints the states that differ from `seen` (task -> state), and updates `seen`."""
    for task, state in _states(run).items():
        if seen.get(task) != state:
            seen[task] = state
            console.print(f"{time.strftime('%H:%M:%S')}  {task}: {state}", markup=False)


def _states(run: Any) -> dict[str, str]:
    """Returns step -> state; Kubeflow's own tasks (drivers, the DAG itself) are left out."""
    titles = {step.title: step.name for step in STEPS.values()}
    named = {titles.get(task.display_name, task.display_name): task.state for task in _details(run)}
    return {name: state for name, state in named.items() if name in STEPS and state}


def _details(run: Any) -> list[Any]:
    return list((run.run_details.task_details if run.run_details else None) or [])


def _report_end(run: Any, seen: dict[str, str]) -> int:
    """Returns 0 if the run succeeded; raises ConcordError with the failed steps and their errors if not."""
    if run.state == "SUCCEEDED":
        console.print(f"run {run.run_id}: SUCCEEDED", markup=False)
        return 0
    failed = [name for name, state in seen.items() if state in ("FAILED", "CANCELED")]
    where = f" at {', '.join(failed)}" if failed else ""
    errors = [task.error.message for task in _details(run) if task.error and task.error.message]
    if run.error and run.error.message:
        errors.append(run.error.message)
    reasons = f": {masked('; '.join(dict.fromkeys(errors)))}" if errors else ""
    raise ConcordError(f"run {run.run_id}: {run.state}{where}{reasons}. The logs are on the run's page.")
