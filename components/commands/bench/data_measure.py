"""Measures time and peak memory of ingest, validate and the bare loop, each run as a command."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml

from components.commands.bench.pictures import MIN_ROWS, TABLE, raw_folder
from components.errors import ConcordError
from components.settings import Settings
from components.steps import STEPS

SIDES = ("ours", "bare")
STEPS_TIMED = ("ingest", "validate")
POLL_SECONDS = 0.2  # between two memory readings
# Shot limits and checks that a few hundred of the benchmark's rows pass.
_TASK = {"low": 0, "high": 100, "resolution": 1, "bin_width": 1, "many": 12, "few": 5}
_INGEST = {
    "source": "folder",
    "csv": TABLE,
    "image_column": "image",
    "target_column": "reading",
    "id_column": None,
    "image_folder": None,
    "release": None,
    "split": "balanced",
    "split_column": None,
    "subject_column": None,
    "max_per_label": 30,
    "max_quarantined": 0,
}
_VALIDATE = {"min_imbalance": 5, "max_test_imbalance": 4, "min_rows_per_shot": 3, "min_side": 8}


@dataclass(frozen=True)
class Run:
    """Time and memory of one command.

    Attributes:
        seconds: wall time.
        cpu: processor time over all cores, in seconds.
        memory: peak resident memory summed over its processes, in bytes; shared pages count once per process.
    """

    seconds: float
    cpu: float
    memory: int


class Bench:
    """Runs our steps and the bare loop on the same images on the same disk."""

    def __init__(self, home: Path, settings: Settings) -> None:
        """Prepares the settings; nothing runs yet.

        Args:
            home: folder of the images; they are kept there.
            settings: of the steps; the keys that depend on the images are overridden.
        """
        self._home = home.absolute()
        self._tree = settings.tree()
        for section, values in (("task", _TASK), ("ingest", _INGEST), ("validate", _VALIDATE)):
            self._tree[section] |= values

    def measure(self, rows: int, rounds: int) -> dict[str, Any]:
        """Measures both sides `rounds` times, alternating.

        Returns:
            `rows`, `bytes` of the images, and for each of `SIDES`: `seconds` (median, least and most), `memory` in
            bytes and `rounds` (ours has one entry per step); `ratios`: the bare loop's time over ours, one per round.

        Raises:
            ConcordError: a command failed; the message has its output.
        """
        folder = raw_folder(self._home, rows)
        runs: dict[str, list[dict[str, Run]]] = {side: [] for side in SIDES}
        with tempfile.TemporaryDirectory(dir=self._home, prefix=".run-") as scratch:
            if not (self._home / "mlflow.db").exists():  # creating the database is not measured
                self._ours(raw_folder(self._home, MIN_ROWS), Path(scratch))
            for number in range(rounds):
                order = SIDES if number % 2 == 0 else SIDES[::-1]
                for side in order:
                    _fill_page_cache(folder)
                    runs[side].append((self._ours if side == "ours" else self._bare)(folder, Path(scratch)))
        ratios = [_total(bare) / _total(ours) for ours, bare in zip(runs["ours"], runs["bare"], strict=True)]
        size = sum(path.stat().st_size for path in folder.glob("images/*/*.jpg"))
        return {"rows": rows, "bytes": size, "ratios": ratios, **{side: _spread(runs[side]) for side in SIDES}}

    def _ours(self, folder: Path, scratch: Path) -> dict[str, Run]:
        tree = self._tree | {"ingest": self._tree["ingest"] | {"path": str(folder)}}
        params = scratch / "params.yaml"
        params.write_text(yaml.safe_dump(tree), encoding="utf-8")
        inputs = {"data": str(folder), "ingest": str(scratch / "artifacts/ingest")}
        environment = {"MLFLOW_TRACKING_URI": f"sqlite:///{self._home}/mlflow.db"}
        runs = {}
        for name in STEPS_TIMED:
            paths = inputs | {"out": str(scratch / "artifacts" / name)}
            runs[name] = run_measured([sys.executable, *STEPS[name].command(str(params), paths)[1:]], environment)
        return runs

    def _bare(self, folder: Path, scratch: Path) -> dict[str, Run]:
        arguments = ["-m", "components.commands.bench.bare_loop", str(folder / TABLE), str(scratch / "bare.parquet")]
        return {"loop": run_measured([sys.executable, *arguments], {})}


def _fill_page_cache(folder: Path) -> None:
    """Reads every image once, so that both sides start with the same files cached in memory."""
    for path in folder.glob("images/*/*.jpg"):
        path.read_bytes()


def run_measured(command: Sequence[str], environment: dict[str, str]) -> Run:
    """Runs a command and measures its time and memory.

    Args:
        environment: added to this process's environment.

    Raises:
        ConcordError: the command failed; the message has the last lines of its output.
    """
    os.sync()  # pending writes of an earlier command must not slow this one down
    before = os.times()
    peak, start = 0, time.perf_counter()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        process = subprocess.Popen(
            command, env=os.environ | environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        tree = psutil.Process(process.pid)
        while process.poll() is None:
            peak = max(peak, _resident(tree))
            try:
                process.wait(POLL_SECONDS)
            except subprocess.TimeoutExpired:
                continue
        seconds, after = time.perf_counter() - start, os.times()
        if process.returncode:
            output.seek(0)
            tail = "".join(output.readlines()[-15:])
            raise ConcordError(f"{' '.join(command[1:4])}: failed with exit code {process.returncode}:\n{tail}")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Run(seconds, cpu, peak)


def _resident(tree: psutil.Process) -> int:
    total = 0
    try:
        for process in (tree, *tree.children(recursive=True)):
            total += process.memory_info().rss
    except psutil.NoSuchProcess:
        pass  # the process has just ended
    return total


def _total(runs: dict[str, Run]) -> float:
    return sum(run.seconds for run in runs.values())


def _spread(rounds: list[dict[str, Run]]) -> dict[str, Any]:
    seconds = np.array([_total(runs) for runs in rounds])
    parts = {name: float(np.median([runs[name].seconds for runs in rounds])) for name in rounds[0]}
    return {
        "seconds": {"median": float(np.median(seconds)), "least": float(seconds.min()), "most": float(seconds.max())},
        "parts": parts,
        "memory": max(run.memory for runs in rounds for run in runs.values()),
        "rounds": [{name: vars(run) for name, run in runs.items()} for runs in rounds],
    }
