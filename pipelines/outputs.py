"""Whether a step has left all that it is to leave. A runner's word is not enough: an exit code can be lost."""

import json
from pathlib import Path
from typing import Any

from components.errors import ConcordError
from components.shared.kubeflow.executor import METRICS
from components.shared.kubeflow.names import PAGE
from components.shared.tracking.hashes import dvc_hash
from components.steps import Step, metrics_file

EXECUTOR_OUTPUT = "executor_output.json"


def output_faults(step: Step, place: Path) -> list[str]:
    """What is missing or wrong of a step's outputs; nothing if all are whole.

    Args:
        step: of the step table.
        place: the task's folder: an entry for each port, and Kubeflow's executor output.

    Returns:
        Sentences without a full stop, each with its path.
    """
    ports = [*step.outputs, *([PAGE] if "report" in step.outputs else [])]
    faults = [fault for port in ports for fault in _port_faults(place / port)]
    faults += _metrics_faults(metrics_file(place / "out"))
    return faults + _stamp_faults(step, place)


def stamped_hashes(step: Step, place: Path) -> dict[str, str]:
    """Port -> the DVC hash that the step stamped on its artifact; of outputs without faults."""
    told = json.loads((place / EXECUTOR_OUTPUT).read_text(encoding="utf-8"))["artifacts"]
    return {port: str(told[port]["artifacts"][0]["metadata"]["dvc_hash"]) for port in step.outputs}


def _port_faults(path: Path) -> list[str]:
    if not path.exists():
        return [f"{path} is missing"]
    empty = not any(entry.is_file() for entry in path.rglob("*")) if path.is_dir() else path.stat().st_size == 0
    if empty:
        return [f"{path} is empty"]
    return []


def _metrics_faults(file: Path) -> list[str]:
    try:
        metrics = json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        return [f"{file} is missing"]
    except ValueError:
        return [f"{file} is no JSON"]
    return [] if isinstance(metrics, dict) and metrics else [f"{file} holds no metrics"]


def _stamp_faults(step: Step, place: Path) -> list[str]:
    """What Kubeflow was told: the hash of each output, which must be that of what lies there, and numbers."""
    file = place / EXECUTOR_OUTPUT
    try:
        artifacts: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["artifacts"]
        told = {name: listed["artifacts"][0]["metadata"] for name, listed in artifacts.items()}
    except OSError:
        return [f"{file} is missing"]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        return [f"{file} is no executor output ({error!r})"]
    faults = [] if told.get(METRICS) else [f"{file} has no metrics"]
    for port in step.outputs:
        stamped = told.get(port, {}).get("dvc_hash")
        try:
            found = dvc_hash(place / port)
        except ConcordError:
            continue  # told already
        if stamped != found:
            faults.append(f"{file} says that {port} has the hash {stamped}, and it has {found}")
    return faults
