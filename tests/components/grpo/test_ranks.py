"""World size: the same rewards and gradients on any number of ranks, also where a group straddles two of them."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from components.shared.model.loading import save
from components.shared.model.tiny import build_model, build_processor
from tests.components.grpo.test_trainer import QUESTIONS
from tests.support.rank_training import GENERATIONS, PROMPTS, settings

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """What each rank found, by the number of ranks."""
    tiny = settings().model.tiny
    assert tiny is not None
    warm = tmp_path_factory.mktemp("warm")
    processor = build_processor(tiny, QUESTIONS)
    save(build_model(tiny, processor, seed=3), processor, warm)
    found = {}
    for ranks in (1, 2, 3):
        out = tmp_path_factory.mktemp(f"ranks-{ranks}")
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        done = subprocess.run(
            [*launch, "-m", "tests.support.rank_training", str(warm), str(out)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        found[ranks] = [torch.load(out / f"rank-{rank}.pt") for rank in range(ranks)]
    return found


def test_rewards_do_not_depend_on_the_world_size(worlds: dict[int, list[dict[str, Any]]]) -> None:
    alone = worlds[1][0]
    assert len(alone["targets"]) == PROMPTS * GENERATIONS
    assert alone["advantages"].abs().max() > 0.1
    for found in worlds.values():
        assert [target for rank in found for target in rank["targets"]] == alone["targets"]
        assert torch.equal(torch.cat([rank["advantages"] for rank in found]), alone["advantages"])
    straddling = {rank["targets"][-1] for rank in worlds[2][:-1]} & {rank["targets"][0] for rank in worlds[2][1:]}
    assert straddling, "no group straddles two ranks: choose other numbers"


def test_gradients_do_not_depend_on_the_world_size(worlds: dict[int, list[dict[str, Any]]]) -> None:
    alone = worlds[1][0]
    largest = max(gradient.norm() for gradient in alone["gradients"].values())
    assert largest > 0
    for found in worlds.values():
        for rank in found:
            assert rank["shared"]
            assert rank["gradients"].keys() == alone["gradients"].keys()
            for name, gradient in alone["gradients"].items():
                assert (rank["gradients"][name] - gradient).norm() <= 1e-5 * max(gradient.norm(), largest * 1e-2), name
