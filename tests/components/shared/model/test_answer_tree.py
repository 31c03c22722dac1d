"""The tree of all numbers, for tokenizers that cut numbers, tags and spaces in different ways."""

import math
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from components.errors import ConcordError
from components.settings import Settings, Task
from components.shared.model.answer_tree import answer_tree, build_tree, canonical_tokens, task_values
from components.shared.model.tiny import CHAT_TEMPLATE, build_processor
from components.shared.scoring.answers import format_answer

END = "<end_of_utterance>"


def task(settings: Settings, **changes: Any) -> Task:
    return settings.task.model_copy(update=changes)


class TextProcessor:
    """A processor without images: a tokenizer with a chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        tokenizer.chat_template = CHAT_TEMPLATE
        self.tokenizer = tokenizer
        self.chat_template = CHAT_TEMPLATE

    def apply_chat_template(self, *args: Any, **kwargs: Any) -> Any:
        return self.tokenizer.apply_chat_template(*args, **kwargs)


def bpe(corpus: list[str], vocabulary: int, split: bool, added: list[str]) -> TextProcessor:
    """A byte-level BPE trained on `corpus`.

    Args:
        split: whether digits, spaces and punctuation are kept apart before merging.
        added: tokens of their own.
    """
    tokenizer = Tokenizer(models.BPE())
    parts: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if split else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*parts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, show_progress=False, special_tokens=[END], initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_tokens(added)
    return TextProcessor(PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END))


ANSWERS = [format_answer(n, 1) for n in range(101)]
TENTHS = [format_answer(n / 10, 0.1) for n in range(-50, 51)]
TOKENIZERS = {
    "bytes": lambda: bpe([], 300, True, []),
    "digits and tags": lambda: bpe([], 300, True, ["<answer>", "</answer>"]),
    "merged with the tag": lambda: bpe(ANSWERS * 3, 500, False, []),
    "merged with the space": lambda: bpe([f" {n} " for n in range(101)] * 3, 420, False, ["<answer>", "</answer>"]),
    "several digits": lambda: bpe([f"{n}" for n in range(101)] * 9, 380, False, ["<answer> ", " </answer>"]),
    "tenths": lambda: bpe(TENTHS * 3, 500, False, []),
}
RANGES = {
    "0 to 100": {"low": 0.0, "high": 100.0, "resolution": 1.0},
    "-5.0 to 5.0": {"low": -5.0, "high": 5.0, "resolution": 0.1},
    "-0.7 to 0.7": {"low": -0.7, "high": 0.7, "resolution": 0.1},
    "quarters": {"low": 0.0, "high": 3.0, "resolution": 0.25},
    "one number": {"low": 7.0, "high": 7.4, "resolution": 1.0},
}


@pytest.mark.parametrize("limits", RANGES.values(), ids=RANGES)
@pytest.mark.parametrize("make", TOKENIZERS.values(), ids=TOKENIZERS)
def test_every_path_is_what_sft_teaches(make: Any, limits: dict[str, float], settings: Settings) -> None:
    processor, chosen = make(), task(settings, **limits)
    tree = answer_tree(processor, chosen)
    for row, value in enumerate(tree.values):
        edges = [edge for edge in tree.paths[row] if edge < len(tree.edge_tokens)]
        ids = [int(tree.edge_tokens[edge]) for edge in edges]
        text = format_answer(float(value), chosen.resolution)
        whole = processor.tokenizer(f"{text}{END}\n", add_special_tokens=False).input_ids
        assert whole[: len(ids)] == ids
        number = text.removesuffix(" </answer>")
        written = processor.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        assert written.startswith(f"{number} ")
        shorter = processor.tokenizer.decode(ids[:-1], clean_up_tokenization_spaces=False)
        assert len(shorter) <= len(number), "the last token is the one in which the closing tag begins"
        nodes = [int(tree.edge_nodes[edge]) for edge in edges]
        assert nodes[0] == 0
        for node, before, token in zip(nodes[1:], nodes, ids, strict=False):
            assert (tree.parents[node], tree.tokens[node]) == (before, token)
            assert tree.depths[node] == tree.depths[before] + 1


@pytest.mark.parametrize("make", TOKENIZERS.values(), ids=TOKENIZERS)
def test_numbers_share_no_ending(make: Any, settings: Settings) -> None:
    """With a random distribution at each node, the probabilities of all numbers add up to at most 1."""
    tree = answer_tree(make(), task(settings))
    rng = np.random.default_rng(0)
    logps = np.empty(len(tree.edge_nodes))
    for node in range(tree.nodes + 1):
        members = tree.edge_nodes == node
        p = rng.dirichlet(np.ones(members.sum() + 1))[:-1]
        logps[members] = np.log(p)
    total = np.exp(np.append(logps, 0.0)[tree.paths].sum(axis=1)).sum()
    assert 0 < total < 1
    assert len({tuple(path) for path in tree.paths.tolist()}) == len(tree.values) == 101


def test_the_default_model_needs_a_node_for_each_digit(settings: Settings) -> None:
    assert settings.model.tiny is not None
    tree = answer_tree(build_processor(settings.model.tiny, [settings.task.question]), settings.task)
    assert (tree.nodes, tree.paths.shape[1], int(tree.depths.max())) == (102, 5, 4)
    np.testing.assert_array_equal(tree.values, np.arange(101))


def test_nodes_see_their_ancestors_and_themselves() -> None:
    tree = build_tree(np.array([1.0, 12.0, 13.0]), [[1, 9], [1, 2, 9], [1, 3, 9]])
    np.testing.assert_array_equal(tree.tokens[1:], [1, 2, 3])
    np.testing.assert_array_equal(tree.parents, [-1, 0, 1, 1])
    np.testing.assert_array_equal(tree.sees, [[1, 0, 0], [1, 1, 0], [1, 0, 1]])
    edges = list(zip(tree.edge_nodes.tolist(), tree.edge_tokens.tolist(), strict=True))
    assert edges == [(0, 1), (1, 2), (1, 3), (1, 9), (2, 9), (3, 9)]
    np.testing.assert_array_equal(tree.paths, [[0, 3, 6], [0, 1, 4], [0, 2, 5]])


@pytest.mark.parametrize("sequences", [[[1, 2], [1, 2]], [[1, 2], [1, 2, 3]], [[1, 2, 3], [1, 2]]])
def test_numbers_that_cannot_be_told_apart_are_reported(sequences: list[list[int]]) -> None:
    with pytest.raises(ConcordError, match="the same tokens"):
        build_tree(np.array([4.0, 5.0]), sequences)


def test_a_tokenizer_that_does_not_say_where_its_tokens_are_is_reported(settings: Settings) -> None:
    processor = bpe([], 300, True, [])

    class Slow:
        is_fast = False

    processor.tokenizer_kept, processor.tokenizer = processor.tokenizer, Slow()  # type: ignore[attr-defined]
    processor.apply_chat_template = processor.tokenizer_kept.apply_chat_template  # type: ignore[attr-defined, method-assign]
    with pytest.raises(ConcordError, match="Slow: does not say which characters"):
        canonical_tokens(processor, settings.task, task_values(settings.task))


@pytest.mark.parametrize("limits", RANGES.values(), ids=RANGES)
def test_the_numbers_of_a_task(limits: dict[str, float], settings: Settings) -> None:
    chosen = task(settings, **limits)
    values = task_values(chosen)
    assert len(values) == math.floor((chosen.high - chosen.low) / chosen.resolution + 1e-6) + 1
    texts = [format_answer(float(value), chosen.resolution) for value in values]
    assert len(set(texts)) == len(values)
    assert not any(" -0 " in text or " -0.0 " in text for text in texts), "-0 is never written"


def test_large_ranges_are_quick(settings: Settings) -> None:
    tree = answer_tree(TOKENIZERS["digits and tags"](), task(settings, low=0.0, high=1000.0, resolution=0.1))
    assert len(tree.values) == 10_001
    assert tree.nodes > 11_000
