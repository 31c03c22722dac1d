"""Probabilities of all numbers equal those of scoring each number by itself with transformers alone."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from components.shared.model.answer_distribution import from_prefix, from_prompts, level_by_level, one_by_one
from components.shared.model.answer_tree import AnswerTree, build_tree
from components.shared.model.loading import load
from components.shared.model.shared_prefix import encode, select
from components.shared.model.suppression import suppress_placeholders
from tests.components.grpo.test_sharing import COMPLETIONS, LENGTH, lora, qwen, qwen_batch
from tests.support.gauge_world import QUESTIONS, noise_batch, tiny, write_params
from tests.support.grpo_training import save_llava, small_settings

# Prefix-free sequences of one to four tokens, with shared beginnings; 20 is out of the way of every special token.
SEQUENCES = [[20, 30], [20, 31, 30], [20, 31, 32, 30], [20, 31, 33, 30], [21], [22, 20, 20, 30], [22, 20, 21], [22, 23]]
TREE = build_tree(np.arange(len(SEQUENCES), dtype=float), SEQUENCES)

Batch = tuple[Tensor, Tensor, dict[str, Tensor]]
NAMES = ["idefics3", "llava", "qwen2_5_vl"]


def parts(batch: Any) -> Batch:
    fields = {name: value for name, value in batch.items() if name not in ("input_ids", "attention_mask")}
    return batch["input_ids"], batch["attention_mask"], fields


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Callable[[], tuple[Any, Batch]]]:
    """A model and prompts of different lengths, created again for each use."""
    folder = tmp_path_factory.mktemp("models")

    def idefics3() -> tuple[Any, Batch]:
        model, processor = tiny(write_params(folder / "params.yaml"))
        suppress_placeholders(model, processor)  # the head then has a bias, as in training
        return model, parts(noise_batch(processor, 3))

    def llava() -> tuple[Any, Batch]:
        settings = small_settings()
        model, processor = load(save_llava(folder / "llava", settings), settings.model)
        return model, parts(noise_batch(processor, len(QUESTIONS)))

    def qwen2_5_vl() -> tuple[Any, Batch]:
        torch.manual_seed(4)
        batch = qwen_batch(image_token=3)
        first = torch.arange(0, len(batch["owners"]), COMPLETIONS)
        fields = select({name: batch[name] for name in ("pixel_values", "image_grid_thw")}, first)
        fields["mm_token_type_ids"] = batch["mm_token_type_ids"][first, :-LENGTH]
        return qwen(64, image_token=3), (
            batch["input_ids"][first, :-LENGTH],
            batch["attention_mask"][first, :-LENGTH],
            fields,
        )

    return {"idefics3": idefics3, "llava": llava, "qwen2_5_vl": qwen2_5_vl}


def reference(model: Any, batch: Batch, sequences: list[list[int]] = SEQUENCES) -> Tensor:
    """Log-probabilities `(U, N)`: each prompt without padding and each number in a forward pass of its own."""
    ids, mask, fields = batch
    rows = []
    for row in range(len(ids)):
        real = mask[row].bool()
        own = select({name: value for name, value in fields.items() if name != "mm_token_type_ids"}, [row])
        logps = []
        for sequence in sequences:
            whole = torch.cat([ids[row, real], torch.tensor(sequence)])[None]
            if "mm_token_type_ids" in fields:
                kinds = torch.cat(
                    [fields["mm_token_type_ids"][row, real], torch.zeros(len(sequence), dtype=torch.long)]
                )
                own = {**own, "mm_token_type_ids": kinds[None]}
            logits = model(input_ids=whole, attention_mask=torch.ones_like(whole), **own).logits[0]
            scores = logits.float().log_softmax(-1)[-len(sequence) - 1 : -1]
            logps.append(scores.gather(-1, torch.tensor(sequence)[:, None]).sum())
        rows.append(torch.stack(logps))
    return torch.stack(rows)


@pytest.mark.parametrize("adapters", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("name", NAMES)
def test_log_probs_and_gradients_equal_scoring_one_by_one(
    cases: dict[str, Callable[[], tuple[Any, Batch]]], name: str, adapters: bool
) -> None:
    model, batch = cases[name]()
    model = lora(model) if adapters else model
    assert (batch[1] == 0).any(), "prompts should differ in length"
    weights = torch.linspace(-1, 1, len(SEQUENCES))

    def run(score: Callable[[], Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        model.zero_grad()
        found = score()
        (found * weights).sum().backward()
        return found.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    expected, gradients = run(lambda: reference(model, batch))
    ways = {
        "prefix": lambda: from_prefix(model, encode(model, *batch), TREE),
        "prompts": lambda: from_prompts(model, *batch, TREE),
        "one by one": lambda: one_by_one(model, *batch, TREE, rows_at_once=5),
    }
    largest = max(gradient.norm() for gradient in gradients.values())
    assert largest > 0
    for way, score in ways.items():
        found, own = run(score)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0, msg=way)
        assert own.keys() == gradients.keys()
        for parameter, gradient in gradients.items():
            assert (own[parameter] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-6 * largest, (way, parameter)


@pytest.mark.parametrize("name", NAMES)
def test_level_by_level_equals_one_pass_and_reports_what_it_leaves_out(
    cases: dict[str, Callable[[], tuple[Any, Batch]]], name: str
) -> None:
    model, batch = cases[name]()
    prefix = encode(model, *batch)
    whole = from_prefix(model, prefix, TREE)
    every = level_by_level(model, prefix, TREE, floor=0.0)
    torch.testing.assert_close(every.numbers, whole, atol=1e-5, rtol=0)
    assert torch.all(every.dropped == 0)
    assert torch.all(every.nodes == TREE.nodes)
    floor = float(whole.detach().exp().max(dim=1).values.min())
    some = level_by_level(model, prefix, TREE, floor)
    kept = some.numbers.isfinite()
    assert 0 < int(kept.sum()) < kept.numel()
    torch.testing.assert_close(some.numbers[kept], whole[kept], atol=1e-5, rtol=0)
    lost = (whole.exp() * ~kept).sum(dim=1)
    assert torch.all(some.dropped >= lost - 1e-6), "a branch left out holds at least its numbers"
    assert torch.all(some.mass + some.dropped <= 1 + 1e-5)


def test_probabilities_are_those_of_sampled_sequences(
    cases: dict[str, Callable[[], tuple[Any, Batch]]],
) -> None:
    """100,000 sequences, drawn token by token from a model with sharp logits, against the numbers' probabilities."""
    model, batch = cases["idefics3"]()
    head = model.get_output_embeddings()
    with torch.no_grad():
        head.bias[[20, 21, 22, 23, 30, 31, 32, 33]] += 8.0  # so that numbers are likely
    one = batch[0][:1], batch[1][:1], {name: value[:1] for name, value in batch[2].items()}
    draws = 100_000
    with torch.no_grad():
        prefix = encode(model, *one)
        expected = from_prefix(model, prefix, TREE)[0].exp().double().numpy()
        # Every prefix of a number is met; their next-token distributions are drawn from with counts.
        generator = np.random.default_rng(0)
        drawn: Counter[tuple[int, ...]] = Counter()
        waiting: dict[tuple[int, ...], int] = {(): draws}
        inner = {tuple(sequence[:length]) for sequence in SEQUENCES for length in range(len(sequence))}
        while waiting:
            path, count = waiting.popitem()
            whole = torch.cat([one[0], torch.tensor([path], dtype=torch.long)], dim=1)
            mask = torch.cat([one[1], torch.ones(1, len(path), dtype=torch.long)], dim=1)
            p = model(input_ids=whole, attention_mask=mask, **one[2]).logits[0, -1].double().softmax(-1).numpy()
            for token, times in enumerate(generator.multinomial(count, p / p.sum())):
                if times:
                    (waiting if (*path, token) in inner else drawn)[(*path, token)] = int(times)
    counts = np.array([drawn[tuple(sequence)] for sequence in SEQUENCES])
    rest = draws - counts.sum()
    assert counts.min() > 5
    assert 0 < expected.sum() < 1
    observed = np.append(counts, rest)
    assert chisquare(observed, draws * np.append(expected, 1 - expected.sum())).pvalue > 1e-3
    assert chisquare(observed, draws * np.append(np.roll(expected, 1), 1 - expected.sum())).pvalue < 1e-3, "it can fail"


def test_logits_of_all_nodes_are_never_held(
    cases: dict[str, Callable[[], tuple[Any, Batch]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head sees a few nodes at a time, also in the backward pass."""
    model, batch = cases["idefics3"]()
    rows: list[int] = []
    kind = type(model.get_output_embeddings())
    forward = kind.forward

    def counted(self: Any, states: Tensor) -> Tensor:
        if self is model.get_output_embeddings():
            rows.append(states.shape[1])
        return forward(self, states)

    monkeypatch.setattr(kind, "forward", counted)
    two_nodes = 2 * 4 * int(model.get_output_embeddings().weight.shape[0]) * len(batch[0])
    monkeypatch.setattr("components.shared.model.answer_distribution.LOGIT_BYTES", two_nodes)
    from_prompts(model, *batch, TREE).sum().backward()
    assert max(rows) == 2
    assert len(rows) == 2 * -(-(TREE.nodes + 1) // 2), "each block is computed again in the backward pass"


def test_unlikely_branches_of_a_large_range_are_left_out(cases: dict[str, Callable[[], tuple[Any, Batch]]]) -> None:
    """1,000 numbers, of which a few branches are likely."""
    model, batch = cases["idefics3"]()
    digits = [20, 21, 22, 23, 30, 31, 32, 33, 34, 35]
    sequences = [[*(digits[int(c)] for c in str(n)), 36, digits[n % 10], 37] for n in range(1000)]
    tree: AnswerTree = build_tree(np.arange(1000, dtype=float), sequences)
    with torch.no_grad():
        model.get_output_embeddings().bias[[20, 21, 36, 37]] += 10.0
        prefix = encode(model, *batch)
        found = level_by_level(model, prefix, tree, floor=1e-4)
        rows = found.numbers[0].topk(3).indices.tolist()
        expected = reference(model, batch, [sequences[row] for row in rows])
    torch.testing.assert_close(found.numbers[:, rows], expected, atol=1e-5, rtol=0)
    assert torch.all(found.dropped > 0)
    assert torch.all(found.mass > 5 * found.dropped)
    assert torch.all((found.nodes > 0) & (found.nodes < tree.nodes / 2))
    assert 0 < int(found.numbers.isfinite().sum()) < found.numbers.numel() / 2
