"""The states of a run's steps, as Kubeflow's API reports them.

Every step is several tasks there: `sft-driver` prepares its pod; `sft` and `executor` are RUNNING as soon as they have
children; each attempt is an `executor(0)`, `executor(1)`, ..., which is PENDING until its container runs. An attempt
does not name its step; it belongs to the step that started last before it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from components.steps import STEPS

# What a person knows as a step -> how else the API may call it. `newest` runs before the steps where --data-uri is a
# pattern.
TITLES = {"newest": "Newest data", **{name: step.title for name, step in STEPS.items()}}
ENDED = ("FAILED", "CANCELED")
_EXECUTOR, _ATTEMPT = re.compile("executor"), re.compile(r"executor\(\d+\)")


@dataclass(frozen=True)
class StepState:
    """The state of a step.

    Attributes:
        name: PENDING where its container does not run yet or waits for its next attempt; else Kubeflow's.
        attempts: number of attempts so far.
        pending_since: when it began to be PENDING; None in other states, or where the API does not tell.
    """

    name: str
    attempts: int = 0
    pending_since: datetime | None = None

    def __str__(self) -> str:
        return f"{self.name} (attempt {self.attempts})" if self.attempts > 1 else self.name


def step_states(run: Any) -> dict[str, StepState]:
    """Returns the state of each step that has one, in the order of the step table."""
    tasks = {task.display_name: task for task in tasks_of(run) if task.state}
    states = {}
    for step, title in TITLES.items():
        driver, task = tasks.get(f"{step}-driver"), tasks.get(step) or tasks.get(title)
        if task:
            states[step] = _with_attempts(task, attempts(run, step))
        elif driver and driver.state in ENDED:
            states[step] = StepState(driver.state)
        elif driver:
            states[step] = StepState("PENDING", 0, driver.start_time)
    return states


def attempts(run: Any, step: str) -> list[Any]:
    """Returns the tasks of a step's attempts, the first one first; the single `executor` where there are no retries."""
    return _parts(run, step, _ATTEMPT) or executors(run, step)


def executors(run: Any, step: str) -> list[Any]:
    """Returns the tasks whose children are a step's attempts."""
    return _parts(run, step, _EXECUTOR)


def ended_by_person(run: Any) -> bool:
    """Whether somebody ended the run: it passed through CANCELING, even though its state is FAILED."""
    return run.state == "CANCELED" or any(entry.state == "CANCELING" for entry in run.state_history or [])


def tasks_of(run: Any) -> list[Any]:
    """Returns all tasks of a run, also those of Kubeflow itself."""
    return list((run.run_details.task_details if run.run_details else None) or [])


def _with_attempts(task: Any, tries: Sequence[Any]) -> StepState:
    if task.state != "RUNNING" or not tries or tries[-1].state in (None, "RUNNING", "SUCCEEDED"):
        return StepState(task.state, len(tries))
    since = tries[-1].end_time  # it ran and failed, and the next attempt is due
    for attempt in reversed(tries):
        if any(entry.state == "RUNNING" for entry in attempt.state_history or []):
            break
        since = attempt.start_time
    return StepState("PENDING", len(tries), since)


def _parts(run: Any, step: str, name: re.Pattern[str]) -> list[Any]:
    """Returns the tasks of this name that started after the step and before the next one."""
    steps = {shown: name for name, title in TITLES.items() for shown in (name, title)}
    started = [task for task in tasks_of(run) if task.start_time]
    starts = sorted((task.start_time, steps[task.display_name]) for task in started if task.display_name in steps)

    def owner(task: Any) -> str:
        return ([""] + [step for start, step in starts if start <= task.start_time])[-1]

    parts = [task for task in started if name.fullmatch(task.display_name or "") and owner(task) == step]
    return sorted(parts, key=lambda task: (task.start_time, task.display_name))
