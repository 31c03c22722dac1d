"""Ten thousand numbers: the same log-probabilities in little memory, and what is left out is reported."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from components.shared.model import answer_distribution
from components.shared.model.answer_distribution import level_by_level, one_by_one
from components.shared.model.answer_tree import AnswerTree, answer_tree
from components.shared.model.device import peak_bytes
from components.shared.model.generation import prepared
from components.shared.model.loading import load
from components.shared.model.shared_prefix import Prefix, encode
from tests.support.gauge_world import QUESTIONS
from tests.support.grpo_training import noise_pictures, save_tiny, small_settings

SETTINGS = small_settings()
TENTHS = SETTINGS.task.model_copy(update={"low": 0.0, "high": 1000.0, "resolution": 0.1, "bin_width": 0.1})
HALF_A_GIGABYTE = 2**29


@dataclass(frozen=True)
class Tiny:
    """A tiny model, and two prompts of different lengths as its inputs."""

    model: Any
    processor: Any
    inputs: tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]

    def prefix(self) -> Prefix:
        with torch.no_grad():
            return encode(self.model, *self.inputs)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    model, processor = load(save_tiny(SETTINGS, tmp_path_factory.mktemp("tiny") / "sft"), SETTINGS.model)
    batch = prepared(model, processor, noise_pictures(2), QUESTIONS[:2])
    return Tiny(model.eval(), processor, (batch.pop("input_ids"), batch.pop("attention_mask"), batch))


@pytest.fixture(scope="module")
def tree(tiny: Tiny) -> AnswerTree:
    return answer_tree(tiny.processor, TENTHS)


def test_ten_thousand_numbers_need_less_than_half_a_gigabyte(tiny: Tiny, tree: AnswerTree) -> None:
    """The worst case: no branch is left out."""
    assert len(tree.values) == 10_001
    assert tree.nodes > 10_000
    prefix, found = tiny.prefix(), []
    used = peak_bytes(lambda: found.append(level_by_level(tiny.model, prefix, tree, floor=0.0)), torch.device("cpu"))
    assert used < HALF_A_GIGABYTE
    (whole,) = found
    assert whole.nodes.tolist() == [tree.nodes] * 2
    assert whole.dropped.tolist() == [0, 0]
    some = np.random.default_rng(0).choice(len(tree.values), 40, replace=False)
    few = AnswerTree(
        tree.values[some], tree.tokens, tree.parents, tree.depths, tree.edge_nodes, tree.edge_tokens, tree.paths[some]
    )
    with torch.no_grad():
        alone = one_by_one(tiny.model, *tiny.inputs, few)
    torch.testing.assert_close(whole.numbers[:, some], alone, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("cells", [1, 5_000])
def test_passes_of_few_nodes_give_the_same(cells: int, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    tree, prefix = answer_tree(tiny.processor, SETTINGS.task), tiny.prefix()
    whole = level_by_level(tiny.model, prefix, tree, floor=0.0).numbers
    monkeypatch.setattr(answer_distribution, "VISIBLE_CELLS", cells)
    torch.testing.assert_close(level_by_level(tiny.model, prefix, tree, floor=0.0).numbers, whole)


def test_what_is_left_out_is_reported(tiny: Tiny, tree: AnswerTree) -> None:
    pruned = level_by_level(tiny.model, tiny.prefix(), tree, floor=1e-3)
    assert (pruned.nodes < 2_000).all()
    assert (pruned.dropped > 0).all()
    assert (pruned.mass + pruned.dropped <= 1 + 1e-5).all()
