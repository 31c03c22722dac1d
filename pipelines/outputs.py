"""Checks that a step wrote all of its outputs. The exit code alone is not enough, since it can be lost."""

import json
from pathlib import Path
from typing import Any

from components.errors import ConcordError
from components.shared.kubeflow.executor import METRICS
from components.shared.kubeflow.names import PAGE
from components.shared.tracking.hashes import dvc_hash
from components.steps import Step, metrics_file

EXECUTOR_OUTPUT = "executor_output.json"


def output_errors(step: Step, folder: Path) -> list[str]:
    """Lists what is missing or wrong in a step's outputs; empty if all are complete.

    Args:
        step: from the step table.
        folder: the task's folder: one entry per port, and Kubeflow's executor output.

    Returns:
        Sentences without a full stop, each with the path of the file or folder.
    """
    ports = [*step.outputs, *([PAGE] if "report" in step.outputs else [])]
    errors = [error for port in ports for error in _port_errors(folder / port)]
    errors += _metrics_errors(metrics_file(folder / "out"))
    return errors + _report_errors(step, folder)


def reported_hashes(step: Step, folder: Path) -> dict[str, str]:
    """Returns port -> the DVC hash that the step reported to Kubeflow, for outputs without errors."""
    artifacts = json.loads((folder / EXECUTOR_OUTPUT).read_text(encoding="utf-8"))["artifacts"]
    return {port: str(artifacts[port]["artifacts"][0]["metadata"]["dvc_hash"]) for port in step.outputs}


def _port_errors(path: Path) -> list[str]:
    if not path.exists():
        return [f"{path} is missing"]
    empty = not any(entry.is_file() for entry in path.rglob("*")) if path.is_dir() else path.stat().st_size == 0
    if empty:
        return [f"{path} is empty"]
    return []


def _metrics_errors(file: Path) -> list[str]:
    try:
        metrics = json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        return [f"{file} is missing"]
    except ValueError:
        return [f"{file} is not JSON"]
    return [] if isinstance(metrics, dict) and metrics else [f"{file} has no metrics"]


def _report_errors(step: Step, folder: Path) -> list[str]:
    """Compares the report to Kubeflow with the files: it must have metrics and the actual hash of each output."""
    file = folder / EXECUTOR_OUTPUT
    try:
        artifacts: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["artifacts"]
        metadata = {name: listed["artifacts"][0]["metadata"] for name, listed in artifacts.items()}
    except OSError:
        return [f"{file} is missing"]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        return [f"{file} is not an executor output ({error!r})"]
    errors = [] if metadata.get(METRICS) else [f"{file} has no metrics"]
    for port in step.outputs:
        reported = metadata.get(port, {}).get("dvc_hash")
        try:
            actual = dvc_hash(folder / port)
        except ConcordError:
            continue  # a missing or empty output is reported above
        if reported != actual:
            errors.append(f"{file} says that {port} has the hash {reported}, but its hash is {actual}")
    return errors
