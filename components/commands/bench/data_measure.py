"""Whole runs of ingest and validate and of the bare loop: seconds, and the most memory that their processes held."""

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

from components.commands.bench.pictures import FEWEST, TABLE, raw_folder
from components.errors import ConcordError
from components.settings import Settings
from components.steps import STEPS

SIDES = ("ours", "bare")
STEPS_TIMED = ("ingest", "validate")
EVERY = 0.2  # seconds between two looks at memory
# What the pictures are labelled by; shots and limits such that a few hundred rows pass the checks as well.
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
    """One command, from start to end.

    Attributes:
        seconds: by the clock.
        cpu: seconds of all cores.
        memory: bytes, the largest sum over its processes of what each has resident; what they share counts for each.
    """

    seconds: float
    cpu: float
    memory: int


class Bench:
    """Runs both sides on the same pictures, on the same disk."""

    def __init__(self, home: Path, settings: Settings) -> None:
        """Nothing is run yet.

        Args:
            home: folder for the pictures; they stay there.
            settings: of the steps, but for what the pictures want.
        """
        self._home = home.absolute()
        self._tree = settings.tree()
        for section, values in (("task", _TASK), ("ingest", _INGEST), ("validate", _VALIDATE)):
            self._tree[section] |= values

    def measure(self, rows: int, rounds: int) -> dict[str, Any]:
        """Both sides, `rounds` times each, in alternation.

        Returns:
            `rows`, `bytes` of the images, and for each of `SIDES`: `seconds` (median, least and most), `memory` in
            bytes and `rounds`, in which ours are the steps one by one; `ratios`: the bare loop's time over ours,
            round by round.

        Raises:
            ConcordError: a command failed, with what it said.
        """
        folder = raw_folder(self._home, rows)
        taken: dict[str, list[dict[str, Run]]] = {side: [] for side in SIDES}
        with tempfile.TemporaryDirectory(dir=self._home, prefix=".run-") as scratch:
            if not (self._home / "mlflow.db").exists():  # to make it is not counted
                self._ours(raw_folder(self._home, FEWEST), Path(scratch))
            for turn in range(rounds):
                order = SIDES if turn % 2 == 0 else SIDES[::-1]
                for side in order:
                    _read_once(folder)
                    taken[side].append((self._ours if side == "ours" else self._bare)(folder, Path(scratch)))
        ratios = [_total(bare) / _total(ours) for ours, bare in zip(taken["ours"], taken["bare"], strict=True)]
        size = sum(path.stat().st_size for path in folder.glob("images/*/*.jpg"))
        return {"rows": rows, "bytes": size, "ratios": ratios, **{side: _spread(taken[side]) for side in SIDES}}

    def _ours(self, folder: Path, scratch: Path) -> dict[str, Run]:
        tree = self._tree | {"ingest": self._tree["ingest"] | {"path": str(folder)}}
        params = scratch / "params.yaml"
        params.write_text(yaml.safe_dump(tree), encoding="utf-8")
        place = {"data": str(folder), "ingest": str(scratch / "artifacts/ingest")}
        environment = {"MLFLOW_TRACKING_URI": f"sqlite:///{self._home}/mlflow.db"}
        runs = {}
        for name in STEPS_TIMED:
            paths = place | {"out": str(scratch / "artifacts" / name)}
            runs[name] = timed([sys.executable, *STEPS[name].command(str(params), paths)[1:]], environment)
        return runs

    def _bare(self, folder: Path, scratch: Path) -> dict[str, Run]:
        words = ["-m", "components.commands.bench.bare", str(folder / TABLE), str(scratch / "bare.parquet")]
        return {"loop": timed([sys.executable, *words], {})}


def _read_once(folder: Path) -> None:
    """So that either side finds in memory what fits there, whoever ran before."""
    for path in folder.glob("images/*/*.jpg"):
        path.read_bytes()


def timed(words: Sequence[str], environment: dict[str, str]) -> Run:
    """Runs a command and watches its memory.

    Args:
        environment: beside this process's.

    Raises:
        ConcordError: it failed; the last lines that it wrote.
    """
    os.sync()  # nobody pays for what another has left to be written
    before = os.times()
    most, start = 0, time.perf_counter()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as said:
        process = subprocess.Popen(
            words, env=os.environ | environment, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT
        )
        tree = psutil.Process(process.pid)
        while process.poll() is None:
            most = max(most, _resident(tree))
            try:
                process.wait(EVERY)
            except subprocess.TimeoutExpired:
                continue
        seconds, after = time.perf_counter() - start, os.times()
        if process.returncode:
            said.seek(0)
            tail = "".join(said.readlines()[-15:])
            raise ConcordError(f"{' '.join(words[1:4])}: ended with {process.returncode}:\n{tail}")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Run(seconds, cpu, most)


def _resident(tree: psutil.Process) -> int:
    total = 0
    try:
        for process in (tree, *tree.children(recursive=True)):
            total += process.memory_info().rss
    except psutil.NoSuchProcess:
        pass  # it has just ended
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
