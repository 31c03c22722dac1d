"""Sampling on a shared prefix: the model's own distribution, the end of completions, and agreement with TRL's sampling.

test_trainer.py and test_sharing.py test that log-probs and gradients equal TRL's.
"""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor
from transformers import DynamicCache

from components.settings import Settings
from components.shared.model.loading import load, save
from components.shared.model.shared_prefix import Prefix, Slots, encode, sample, score, score_without_cache
from tests.support.gauge_world import noise_batch, tiny, write_params

V = 5
END, PAD = 3, 4
# Row t: probabilities of the token after t. The pad has probability 0, as the suppression of placeholders sets it.
CHAIN = torch.tensor(
    [
        [0.1, 0.6, 0.2, 0.1, 0.0],
        [0.3, 0.1, 0.1, 0.5, 0.0],
        [0.0, 0.0, 0.5, 0.5, 0.0],
        [0.25, 0.25, 0.25, 0.25, 0.0],  # after the end: unused
        [1.0, 0.0, 0.0, 0.0, 0.0],  # after a pad: unused
    ]
)
FIRST = torch.tensor([0.5, 0.2, 0.2, 0.1, 0.0])


class Chain:
    """A language model that depends on the last token only, so that every probability is known."""

    def __init__(self) -> None:
        """Records masks and positions."""
        self.masks: list[Tensor] = []
        self.positions: list[Tensor] = []

    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(_attn_implementation="sdpa"))

    def __call__(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, **_: Any) -> Any:
        self.masks.append(attention_mask)
        self.positions.append(position_ids)
        return SimpleNamespace(logits=CHAIN.log()[input_ids])


def chain_prefix(count: int) -> Prefix:
    """`count` inputs, the first with a padded prompt."""
    mask = torch.ones(count, 7, dtype=torch.long)
    mask[0, :3] = 0
    return Prefix(DynamicCache(), FIRST.log().repeat(count, 1), mask, torch.full((count,), 7))


def sampled(count: int, length: int = 4, temperature: float = 1.0, seed: int = 0) -> tuple[Tensor, Chain]:
    torch.manual_seed(seed)
    model = Chain()
    inputs = count // 10
    slots = Slots(torch.randperm(count) % inputs, inputs)
    return sample(model, chain_prefix(inputs), slots, length, temperature, [END], PAD), model


def fits(counts: Tensor, probabilities: Tensor) -> bool:
    """Chi-square test of the counts against this distribution; tokens of probability 0 must not occur."""
    possible = probabilities > 0
    assert counts[~possible].sum() == 0
    expected = probabilities[possible].double()
    expected *= counts.sum() / expected.sum()
    return bool(chisquare(counts[possible].numpy(), expected.numpy()).pvalue > 1e-3)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_follow_the_distribution_of_the_model(temperature: float) -> None:
    ids, _ = sampled(20_000, length=2, temperature=temperature)
    flat = FIRST.pow(1 / temperature)
    assert fits(torch.bincount(ids[:, 0], minlength=V), flat / flat.sum())
    for token in (0, 1, 2):
        after = ids[ids[:, 0] == token, 1]
        row = CHAIN[token].pow(1 / temperature)
        assert fits(torch.bincount(after, minlength=V), row / row.sum()), f"after {token}"


def test_another_temperature_gives_another_distribution() -> None:
    """The test above can fail."""
    ids, _ = sampled(20_000, length=1, temperature=2.0)
    assert not fits(torch.bincount(ids[:, 0], minlength=V), FIRST)


def test_only_padding_follows_the_end() -> None:
    ids, _ = sampled(3000, length=6)
    assert ids.shape == (3000, 6)
    for row in ids.tolist():
        if END in row:
            end = row.index(END)
            assert set(row[end + 1 :]) <= {PAD}
            assert PAD not in row[:end]
        else:
            assert PAD not in row
    assert 0.05 < (ids != END).all(dim=1).float().mean() < 0.5


def test_sampling_stops_when_all_completions_have_ended() -> None:
    torch.manual_seed(0)
    ended = Prefix(DynamicCache(), torch.eye(V)[END].log().repeat(3, 1), torch.ones(3, 2), torch.full((3,), 2))
    model = Chain()
    assert sample(model, ended, Slots(torch.tensor([0, 1, 2]), 3), 8, 1.0, [END], PAD).tolist() == [[END]] * 3
    assert model.masks == []


def test_each_end_token_ends_a_completion() -> None:
    torch.manual_seed(0)
    ids = sample(Chain(), chain_prefix(500), Slots(torch.arange(500), 500), 5, 1.0, [END, 2], PAD)
    for row in ids.tolist():
        ends = [i for i, token in enumerate(row) if token in (END, 2)]
        assert len(ends) <= 1
        assert all(token == PAD for token in (row[ends[0] + 1 :] if ends else []))


def test_each_slot_attends_to_the_prompt_and_to_itself() -> None:
    _, model = sampled(50, length=4)
    assert [mask.shape for mask in model.masks] == [(5, 1, 10, 7 + 10 * step) for step in (1, 2, 3)]
    for step, mask in enumerate(model.masks, start=1):
        assert not mask[0, 0, :, :3].any(), "the prompt's padding is masked"
        assert mask[0, 0, :, 3:7].all()
        assert mask[1:, 0, :, :7].all()
        for slot in range(10):
            others = mask[:, 0, slot, 7:].view(5, step, 10)
            assert others[..., slot].all()
            assert others.sum() == 5 * step, "and to no other slot"
    assert [positions.unique().tolist() for positions in model.positions] == [[7], [8], [9]]


@pytest.mark.parametrize("owners", [[0, 0, 1, 1], [2, 0, 2, 1, 0, 2], [1, 1, 1]])
def test_collect_inverts_spread(owners: list[int]) -> None:
    slots = Slots(torch.tensor(owners), 3)
    rows = torch.arange(2 * len(owners)).view(-1, 2)
    spread = slots.spread(rows)
    assert spread.shape == (3, max(owners.count(i) for i in range(3)), 2)
    assert slots.collect(spread).tolist() == rows.tolist()
    for i in range(3):
        own = rows[[row for row, owner in enumerate(owners) if owner == i]]
        assert spread[i, : len(own)].tolist() == own.tolist(), "in the order of the completions"


def test_one_token_needs_no_model_call() -> None:
    ids, model = sampled(10, length=1)
    assert ids.shape == (10, 1)
    assert model.masks == []


# A real model.


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, Path]:
    """Settings of one step with two inputs and many completions each, and an untrained model."""
    folder = tmp_path_factory.mktemp("warm")
    grpo = {"prompts": 2, "generations": 400, "steps": 1, "beta": 0.0, "temperature": 0.7}
    settings = write_params(folder / "params.yaml", grpo=grpo)
    save(*tiny(settings), folder / "model")
    return settings, folder / "model"


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("whole_pass", [False, True], ids=["cached", "whole"])
def test_completions_attend_to_their_own_prefix(warm: tuple[Settings, Path], attention: str, whole_pass: bool) -> None:
    """Padded prompts, completions in a mixed order: the same values as if each sequence were computed alone."""
    settings, folder = warm
    model, processor = load(folder, settings.model)
    model.set_attn_implementation(attention)
    batch = noise_batch(processor, 3)
    fields = {name: batch[name] for name in ("pixel_values", "pixel_attention_mask")}
    owners = torch.tensor([2, 0, 2, 1, 0])
    ids = torch.tensor([[27, 28, 29], [21, 22, 23], [27, 28, 29], [40, 50, 60], [23, 22, 21]])
    mask = torch.ones_like(ids)
    mask[3, 1:] = 0
    with torch.no_grad():
        slots = Slots(owners, 3)
        if whole_pass:
            inputs = batch["input_ids"], batch["attention_mask"], fields
            logps, entropy = score_without_cache(model, *inputs, slots, ids, 0.7)
        else:
            prefix = encode(model, batch["input_ids"], batch["attention_mask"], fields)
            logps, entropy = score(model, prefix, slots, ids, 0.7)
        for row, owner in enumerate(owners.tolist()):
            keep = batch["attention_mask"][owner].bool()
            prompt = batch["input_ids"][owner][keep]
            whole = torch.cat([prompt, ids[row]])[None]
            own = {name: value[owner : owner + 1] for name, value in fields.items()}
            logits = model(input_ids=whole, **own).logits[0, len(prompt) - 1 : -1] / 0.7
            expected = torch.log_softmax(logits, -1)
            length = int(mask[row].sum())
            picked = expected.gather(-1, ids[row][:, None])[:length, 0]
            torch.testing.assert_close(logps[row, :length], picked, rtol=0, atol=1e-5)
            spread = -(expected.exp() * expected).sum(-1)[:length]
            torch.testing.assert_close(entropy[row, :length], spread, rtol=0, atol=1e-5)


def first_token_counts(trainer: Any, sharing: bool) -> list[Counter[int]]:
    """Counts the first tokens of each input's completions in a training step."""
    trainer.shares_prefix = sharing
    torch.manual_seed(1)
    trainer.model.train()
    output = trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))
    first = output["completion_ids"][:, 0].reshape(2, -1)
    return [Counter(row.tolist()) for row in first]


def test_first_tokens_follow_the_same_distribution_as_in_trl(warm: tuple[Settings, Path], tmp_path: Path) -> None:
    """Both follow softmax(logits / temperature) of the model, by a chi-square test on twenty bins."""
    from datasets import Dataset
    from PIL import Image

    from components.grpo.trainer import BatchRewardTrainer, training_arguments
    from components.shared.model.prompts import prompt

    settings, folder = warm
    pictures = [Image.fromarray(np.full((32, 32, 3), 80 * k, np.uint8)) for k in (1, 2)]

    def show(batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        ks = batch["position"]
        row: dict[str, list[Any]] = {"prompt": [prompt("How bright?") for _ in ks], "image": [pictures[k] for k in ks]}
        return row | {"target": [50.0 for _ in ks], "shot": ["many" for _ in ks]}

    model, processor = load(folder, settings.model)
    trainer = BatchRewardTrainer(
        model=model,
        args=training_arguments(settings.grpo, settings, tmp_path, 1),
        train_dataset=Dataset.from_dict({"position": range(2)}).with_transform(show),
        processing_class=processor,
        settings=settings,
    )
    counts_by_path = {sharing: first_token_counts(trainer, sharing) for sharing in (True, False)}
    text = processor.apply_chat_template(
        [
            {
                "role": "user",
                "content": [{"type": "image"}, {"type": "text", "text": prompt("How bright?")[0]["content"]}],
            }
        ],
        add_generation_prompt=True,
    )
    for k, picture in enumerate(pictures):
        batch = processor(text=text, images=[[picture]], return_tensors="pt")
        with torch.no_grad():
            exact = torch.softmax(model(**batch).logits[0, -1] / 0.7, -1).double().numpy()
        order = np.argsort(exact)
        bins = np.minimum((np.cumsum(exact[order]) * 20).astype(int), 19)
        share = np.bincount(bins, exact[order], minlength=20)
        for sharing, counts in counts_by_path.items():
            seen = np.bincount(bins, [counts[k][token] for token in order], minlength=20)
            assert seen.sum() == 400
            assert chisquare(seen, share * 400 / share.sum()).pvalue > 1e-3, f"sharing: {sharing}"
