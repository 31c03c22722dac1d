"""Weights that are divided over two ranks: each holds half, and training ends in the weights of DDP."""

from pathlib import Path
from typing import Any

import pytest
import torch

from components.errors import ConcordError
from components.settings import load_settings
from components.shared.training.sharding import check_sharding
from tests.support.grpo_training import save_tiny, small_settings
from tests.support.rank_processes import on_ranks
from tests.support.rank_sharding import CASES

ROOT = Path(__file__).parents[4]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[tuple[str, str], dict[str, Any]]]:
    """What each of two ranks found."""
    warm, out = save_tiny(small_settings(), tmp_path_factory.mktemp("warm")), tmp_path_factory.mktemp("out")
    return on_ranks(2, "tests.support.rank_sharding", warm, out=out)


@pytest.mark.parametrize("case", CASES)
def test_each_rank_holds_its_part(case: str, results: list[dict[tuple[str, str], dict[str, Any]]]) -> None:
    everything = results[0]["none", case]["held"]
    found = [result["full", case] for result in results]
    for part in ("held", "held after gathering", "reference", "optimizer"):
        assert results[0]["none", case][part] == everything
        assert sum(rank[part] for rank in found) == everything, part
        assert max(rank[part] for rank in found) < 0.52 * everything, part


@pytest.mark.parametrize("case", CASES)
def test_weights_are_those_of_ddp(case: str, results: list[dict[tuple[str, str], dict[str, Any]]]) -> None:
    """Also with bfloat16, which rounds as DDP's autocast does; and the prefix is shared as there."""
    expected = results[0]["none", case]
    for rank in results:
        found = rank["full", case]
        assert found["plain"]
        assert found["change"] > 1e-3
        assert found["shared"]
        assert found["losses"] == pytest.approx(expected["losses"], rel=1e-5)
        assert found["weights"].keys() == expected["weights"].keys()
        for name, weights in expected["weights"].items():
            assert torch.allclose(found["weights"][name], weights, rtol=0, atol=1e-5), name


def test_one_rank_has_nothing_to_divide() -> None:
    launcher = load_settings(ROOT / "params.yaml").launcher
    check_sharding(launcher)
    with pytest.raises(ConcordError, match=r"launcher.sharding: full divides the weights over several ranks"):
        check_sharding(launcher.model_copy(update={"sharding": "full"}))
