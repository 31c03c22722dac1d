"""World size: rewards and gradients are the same on any number of ranks, also where a group spans two of them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.grpo_training import assert_near, save_llava, save_tiny
from tests.support.rank_processes import on_ranks
from tests.support.rank_training import ACCUMULATIONS, EXACT, GENERATIONS, PROMPTS, settings

ROOT = Path(__file__).parents[3]
Results = dict[int, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What each rank computed, by the number of ranks."""
    warm = save_tiny(settings(), tmp_path_factory.mktemp("warm"))
    llava = save_llava(tmp_path_factory.mktemp("llava"), settings())
    results = {}
    for ranks in (1, 2, 3):
        out = tmp_path_factory.mktemp(f"ranks-{ranks}")
        results[ranks] = on_ranks(ranks, "tests.support.rank_training", warm, llava, out=out)
    return results


def test_advantages_do_not_depend_on_the_world_size(results: Results) -> None:
    single = results[1][0]
    assert len(single["targets"]) == PROMPTS * GENERATIONS
    assert single["advantages"].abs().max() > 0.1
    for ranks in results.values():
        assert [target for rank in ranks for target in rank["targets"]] == single["targets"]
        assert torch.equal(torch.cat([rank["advantages"] for rank in ranks]), single["advantages"])
    spanning = {rank["targets"][-1] for rank in results[2][:-1]} & {rank["targets"][0] for rank in results[2][1:]}
    assert spanning, "no group spans two ranks: choose other numbers"


def test_gradients_do_not_depend_on_the_world_size(results: Results) -> None:
    single = results[1][0]
    for ranks in results.values():
        for rank in ranks:
            assert rank["shared"]
            assert_near(rank["gradients"], single["gradients"])


@pytest.mark.parametrize("case", EXACT)
def test_exact_gradients_depend_neither_on_the_world_size_nor_on_micro_batches(case: str, results: Results) -> None:
    """Also in the second step, in which recent anchors join the comparison."""
    single = results[1][0]["exact"][case, 1]
    for ranks in results.values():
        for rank in ranks:
            for accumulation in ACCUMULATIONS:
                found = rank["exact"][case, accumulation]
                assert found["shared"]
                assert found["rewards"] == pytest.approx(single["rewards"], abs=1e-6)
                for gradients, expected in zip(found["gradients"], single["gradients"], strict=True):
                    assert_near(gradients, expected)


def test_ddp_looks_for_unused_parameters_only_where_there_are_some(results: Results) -> None:
    """LLaVA's vision tower has a last norm that it does not use; the other models use all that is trained."""
    for ranks in results.values():
        for rank in ranks:
            assert not rank["searches"]
            assert not any(found["searches"] for found in rank["exact"].values())
            assert rank["llava"]["searches"]
            assert_near(rank["llava"]["gradients"], results[1][0]["llava"]["gradients"])
