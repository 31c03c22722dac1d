"""sft as in its pod: the first process of the container, with the words and the variables that Kubeflow gives."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from components.shared.kubeflow.tries import Tries
from tests.support.repository import ROOT


@dataclass
class StepPod:
    """One pod of sft.

    Attributes:
        folder: of its output `out`, its log and executor.json.
        process: the container's first process, the step's parent.
        run: Kubeflow's id of the run.
    """

    folder: Path
    process: "subprocess.Popen[bytes]"
    run: str

    def log(self) -> str:
        return (self.folder / "log.txt").read_text(encoding="utf-8", errors="replace")

    def until(self, condition: Callable[[], Any]) -> None:
        """Waits while the pod runs."""
        deadline = time.monotonic() + 300
        while not condition():
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.01)

    def finish(self, code: int = 0) -> None:
        assert self.process.wait(timeout=400) == code, self.log()

    def kill(self) -> None:
        """Ends it at once, as the loss of its machine does."""
        if self.process.poll() is None:
            for one in psutil.Process(self.process.pid).children(recursive=True):
                one.kill()
        self.process.kill()
        self.process.wait()

    def metadata(self) -> dict[str, Any]:
        """What Kubeflow stores with the output."""
        executor = json.loads((self.folder / "executor.json").read_text(encoding="utf-8"))
        found: dict[str, Any] = executor["artifacts"]["out"]["artifacts"][0]["metadata"]
        return found


def start_pod(
    place: Path, run: str, params: Path, ingest: Path, state: Path, tracking_uri: str, retries: int, **more: str
) -> StepPod:
    """Starts a pod in `place`/`run`.

    Args:
        run: Kubeflow's id of the run; a second pod of the run goes on in its folder.
        state: where the volume for training state is mounted.
        retries: in the pod.
        more: further environment variables.
    """
    folder = place / run
    folder.mkdir(exist_ok=True)
    artifacts = {name: {"artifacts": [{"name": name, "uri": f"s3://b/{name}"}]} for name in ("out", "metrics")}
    executor_input = {"outputs": {"artifacts": artifacts, "outputFile": str(folder / "executor.json")}}
    words = ["sft", "--params", params, "--ingest", ingest, "--validate", ingest, "--out", folder / "out"]
    words += ["--state", state, "--pipeline-run", run, "--executor-input", json.dumps(executor_input)]
    environment: Mapping[str, str] = {
        **{name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")},
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
        "MLFLOW_TRACKING_URI": tracking_uri,
        "CONCORD_DVC_REMOTE": str(place / "remote"),
        "CONCORD_TRIES": Tries(retries, 0.1, 1, 60).to_json(),
        "CONCORD_REUSE": "on",
        "KFP_RUN_ID": run,
        **more,
    }
    with open(folder / "log.txt", "ab") as log:
        command = [sys.executable, "-m", "components", *map(str, words)]
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    return StepPod(folder, process, run)
