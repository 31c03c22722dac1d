"""Runs a module of tests/support on several ranks, as torchrun starts them."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from tests.support.repository import ROOT


def on_ranks(ranks: int, module: str, *inputs: Path, out: Path) -> list[Any]:
    """Calls `python -m MODULE INPUTS OUT` on each rank; returns what each has saved as OUT/rank-N.pt."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    completed = subprocess.run(
        [*launch, "-m", module, *map(str, (*inputs, out))],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert completed.returncode == 0, completed.stderr[-3000:]
    return [torch.load(out / f"rank-{rank}.pt") for rank in range(ranks)]
