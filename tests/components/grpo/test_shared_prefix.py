"""Sampling on a shared prefix: the model's own distribution, an end that ends, and what TRL's own generation draws.

That log-probs and gradients equal those of TRL's path is tested with the trainer (tests/components/grpo).
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

from components.grpo.shared_prefix import Prefix, Slots, encode, sample, score, score_whole
from components.settings import Settings
from components.shared.model.loading import load, save
from tests.support.gauge_world import asked, tiny, write_params

V = 5
END, PAD = 3, 4
# Row t: probabilities of the token after t. The pad is impossible, as the suppression makes it.
CHAIN = torch.tensor(
    [
        [0.1, 0.6, 0.2, 0.1, 0.0],
        [0.3, 0.1, 0.1, 0.5, 0.0],
        [0.0, 0.0, 0.5, 0.5, 0.0],
        [0.25, 0.25, 0.25, 0.25, 0.0],  # after the end: must not matter
        [1.0, 0.0, 0.0, 0.0, 0.0],  # after a pad: must not matter
    ]
)
FIRST = torch.tensor([0.5, 0.2, 0.2, 0.1, 0.0])


class Chain:
    """A language model that looks at the last token alone, so that every probability is known."""

    def __init__(self) -> None:
        """Remembers the masks and the positions that it was given."""
        self.masks: list[Tensor] = []
        self.places: list[Tensor] = []

    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(_attn_implementation="sdpa"))

    def __call__(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, **_: Any) -> Any:
        self.masks.append(attention_mask)
        self.places.append(position_ids)
        return SimpleNamespace(logits=CHAIN.log()[input_ids])


def chain_prefix(count: int) -> Prefix:
    """`count` inputs, the first with a padded prompt."""
    mask = torch.ones(count, 7, dtype=torch.long)
    mask[0, :3] = 0
    return Prefix(DynamicCache(), FIRST.log().repeat(count, 1), mask, torch.full((count,), 7))


def drawn(count: int, length: int = 4, temperature: float = 1.0, seed: int = 0) -> tuple[Tensor, Chain]:
    torch.manual_seed(seed)
    model = Chain()
    inputs = count // 10
    slots = Slots(torch.randperm(count) % inputs, inputs)
    return sample(model, chain_prefix(inputs), slots, length, temperature, [END], PAD), model


def fits(counts: Tensor, probabilities: Tensor) -> bool:
    """Chi-square: what was drawn is a sample of this distribution, impossible tokens never drawn."""
    possible = probabilities > 0
    assert counts[~possible].sum() == 0
    expected = probabilities[possible].double()
    expected *= counts.sum() / expected.sum()
    return bool(chisquare(counts[possible].numpy(), expected.numpy()).pvalue > 1e-3)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_follow_the_model_s_distribution(temperature: float) -> None:
    ids, _ = drawn(20_000, length=2, temperature=temperature)
    flat = FIRST.pow(1 / temperature)
    assert fits(torch.bincount(ids[:, 0], minlength=V), flat / flat.sum())
    for token in (0, 1, 2):
        after = ids[ids[:, 0] == token, 1]
        row = CHAIN[token].pow(1 / temperature)
        assert fits(torch.bincount(after, minlength=V), row / row.sum()), f"after {token}"


def test_the_temperature_is_seen() -> None:
    """The test above is one that can fail."""
    ids, _ = drawn(20_000, length=1, temperature=2.0)
    assert not fits(torch.bincount(ids[:, 0], minlength=V), FIRST)


def test_after_the_end_there_is_padding_alone() -> None:
    ids, _ = drawn(3000, length=6)
    assert ids.shape == (3000, 6)
    for row in ids.tolist():
        if END in row:
            end = row.index(END)
            assert set(row[end + 1 :]) <= {PAD}
            assert PAD not in row[:end]
        else:
            assert PAD not in row
    assert 0.05 < (ids != END).all(dim=1).float().mean() < 0.5


def test_it_stops_when_all_have_ended() -> None:
    torch.manual_seed(0)
    ended = Prefix(DynamicCache(), torch.eye(V)[END].log().repeat(3, 1), torch.ones(3, 2), torch.full((3,), 2))
    model = Chain()
    assert sample(model, ended, Slots(torch.tensor([0, 1, 2]), 3), 8, 1.0, [END], PAD).tolist() == [[END]] * 3
    assert model.masks == []


def test_several_tokens_may_end_it() -> None:
    torch.manual_seed(0)
    ids = sample(Chain(), chain_prefix(500), Slots(torch.arange(500), 500), 5, 1.0, [END, 2], PAD)
    for row in ids.tolist():
        ends = [i for i, token in enumerate(row) if token in (END, 2)]
        assert len(ends) <= 1
        assert all(token == PAD for token in (row[ends[0] + 1 :] if ends else []))


def test_each_slot_sees_the_prompt_and_itself() -> None:
    _, model = drawn(50, length=4)
    assert [mask.shape for mask in model.masks] == [(5, 1, 10, 7 + 10 * step) for step in (1, 2, 3)]
    for step, mask in enumerate(model.masks, start=1):
        assert not mask[0, 0, :, :3].any(), "padding of the prompt stays masked"
        assert mask[0, 0, :, 3:7].all()
        assert mask[1:, 0, :, :7].all()
        for slot in range(10):
            others = mask[:, 0, slot, 7:].view(5, step, 10)
            assert others[..., slot].all()
            assert others.sum() == 5 * step, "and of the suffixes nothing else"
    assert [place.unique().tolist() for place in model.places] == [[7], [8], [9]]


@pytest.mark.parametrize("owners", [[0, 0, 1, 1], [2, 0, 2, 1, 0, 2], [1, 1, 1]])
def test_slots_give_back_what_was_spread(owners: list[int]) -> None:
    slots = Slots(torch.tensor(owners), 3)
    rows = torch.arange(2 * len(owners)).view(-1, 2)
    spread = slots.spread(rows)
    assert spread.shape == (3, max(owners.count(i) for i in range(3)), 2)
    assert slots.collect(spread).tolist() == rows.tolist()
    for i in range(3):
        own = rows[[row for row, owner in enumerate(owners) if owner == i]]
        assert spread[i, : len(own)].tolist() == own.tolist(), "in the order of the completions"


def test_one_token_needs_no_further_pass() -> None:
    ids, model = drawn(10, length=1)
    assert ids.shape == (10, 1)
    assert model.masks == []


# A real model.


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, Path]:
    """Settings of one step with two inputs and many completions each, and an untrained model."""
    folder = tmp_path_factory.mktemp("warm")
    grpo = {"prompts": 2, "generations": 400, "steps": 1, "beta": 0.0, "temperature": 0.7, "max_new_tokens": 2}
    settings = write_params(folder / "params.yaml", grpo=grpo)
    save(*tiny(settings), folder / "model")
    return settings, folder / "model"


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("whole_pass", [False, True], ids=["cached", "whole"])
def test_completions_see_their_own_prefix(warm: tuple[Settings, Path], attention: str, whole_pass: bool) -> None:
    """Prompts padded to one length, shared out in a mixed order: as if each were encoded alone."""
    settings, folder = warm
    model, processor = load(folder, settings.model)
    model.set_attn_implementation(attention)
    batch = asked(processor, 3)
    fields = {name: batch[name] for name in ("pixel_values", "pixel_attention_mask")}
    owners = torch.tensor([2, 0, 2, 1, 0])
    ids = torch.tensor([[27, 28, 29], [21, 22, 23], [27, 28, 29], [40, 50, 60], [23, 22, 21]])
    mask = torch.ones_like(ids)
    mask[3, 1:] = 0
    with torch.no_grad():
        slots = Slots(owners, 3)
        if whole_pass:
            asked_for = batch["input_ids"], batch["attention_mask"], fields
            logps, entropy = score_whole(model, *asked_for, slots, ids, 0.7)
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
    """First tokens of each input's completions, as the training step draws them."""
    trainer.sharing = sharing
    torch.manual_seed(1)
    trainer.model.train()
    output = trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))
    first = output["completion_ids"][:, 0].reshape(2, -1)
    return [Counter(row.tolist()) for row in first]


def test_first_tokens_are_drawn_as_trl_draws_them(warm: tuple[Settings, Path], tmp_path: Path) -> None:
    """Both from softmax(logits / temperature) of the model itself, by a chi-square test on some twenty bins."""
    from datasets import Dataset
    from PIL import Image

    from components.grpo.trainer import BatchRewardTrainer, training_arguments
    from components.shared.model.prompts import prompt

    settings, folder = warm
    pictures = [Image.fromarray(np.full((32, 32, 3), 80 * k, np.uint8)) for k in (1, 2)]

    def show(batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        ks = batch["position"]
        row = {"prompt": [prompt("How bright?") for _ in ks], "image": [pictures[k] for k in ks]}
        return row | {"target": [50.0 for _ in ks], "shot": ["many" for _ in ks]}

    model, processor = load(folder, settings.model)
    trainer = BatchRewardTrainer(
        model=model,
        args=training_arguments(settings.grpo, settings, tmp_path, 1),
        train_dataset=Dataset.from_dict({"position": range(2)}).with_transform(show),
        processing_class=processor,
        settings=settings,
    )
    found = {sharing: first_token_counts(trainer, sharing) for sharing in (True, False)}
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
        for sharing, counts in found.items():
            seen = np.bincount(bins, [counts[k][token] for token in order], minlength=20)
            assert seen.sum() == 400
            assert chisquare(seen, share * 400 / share.sum()).pvalue > 1e-3, f"sharing: {sharing}"
