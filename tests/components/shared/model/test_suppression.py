"""Placeholder tokens get probability 0, with and without a bias in the head, and no other logits change."""

from typing import Any

import pytest
import torch
from torch import nn

from components.settings import Settings
from components.shared.model.suppression import SUPPRESSED, placeholder_ids, suppress_placeholders
from tests.support.gauge_world import noise_batch, tiny, write_params


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return write_params(tmp_path_factory.mktemp("params") / "params.yaml")


def head_with_bias(model: Any) -> nn.Parameter:
    """Replaces the model's LM head by one with a bias, which some architectures have."""
    head = nn.Linear(model.lm_head.in_features, model.lm_head.out_features)
    head.weight = model.lm_head.weight
    model.set_output_embeddings(head)
    return head.bias


def test_ids_are_the_placeholders_without_the_end_token(settings: Settings) -> None:
    model, processor = tiny(settings)
    names = processor.tokenizer.convert_ids_to_tokens(placeholder_ids(model, processor))
    assert sorted(names) == ["<fake_token_around_image>", "<global-img>", "<image>", "<pad>"]


def test_padding_token_that_is_also_the_end_token_is_not_suppressed(settings: Settings) -> None:
    """Many models use their end token for padding."""
    model, processor = tiny(settings)
    processor.tokenizer.pad_token = processor.tokenizer.eos_token
    model.generation_config.eos_token_id = [processor.tokenizer.eos_token_id, 99]
    model.generation_config.pad_token_id = processor.tokenizer.eos_token_id
    assert processor.tokenizer.eos_token_id not in placeholder_ids(model, processor)


@pytest.mark.parametrize("biased", [False, True])
def test_only_logits_of_placeholders_change(biased: bool, settings: Settings) -> None:
    model, processor = tiny(settings)
    if biased:
        head_with_bias(model)
    batch = noise_batch(processor, 3)
    with torch.no_grad():
        before = model(**batch).logits
        ids = suppress_placeholders(model, processor)
        after = model(**batch).logits
    others = [i for i in range(before.shape[-1]) if i not in ids]
    torch.testing.assert_close(after[..., others], before[..., others], rtol=0, atol=1e-6)
    assert after[..., ids].max() < SUPPRESSED / 2
    assert torch.softmax(after, -1)[..., ids].max() == 0


def test_bias_of_the_head_is_trained_except_for_placeholders(settings: Settings) -> None:
    model, processor = tiny(settings)
    bias = head_with_bias(model)
    ids = suppress_placeholders(model, processor)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.0)
    start = bias.detach().clone()
    batch = noise_batch(processor, 3)
    labels = batch["input_ids"].masked_fill(torch.isin(batch["input_ids"], torch.tensor(ids)), -100)
    for _ in range(3):
        model(**batch, labels=labels).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    changed = (bias.detach() != start).nonzero().flatten().tolist()
    assert len(changed) > 50
    assert not set(changed) & set(ids)


def test_suppression_survives_a_dtype_change_and_a_second_call(settings: Settings) -> None:
    model, processor = tiny(settings)
    ids = suppress_placeholders(model, processor)
    assert suppress_placeholders(model, processor) == ids
    model.to(torch.bfloat16)
    with torch.no_grad():
        batch = noise_batch(processor, 1)
        batch["pixel_values"] = batch["pixel_values"].to(torch.bfloat16)
        logits = model(**batch).logits
    assert logits.isfinite().all()
    assert torch.softmax(logits.float(), -1)[..., ids].max() == 0


def test_suppression_is_not_in_the_state_dict(settings: Settings) -> None:
    model, processor = tiny(settings)
    before = set(model.state_dict())
    suppress_placeholders(model, processor)
    assert set(model.state_dict()) == before


def test_model_without_a_head_is_rejected(settings: Settings) -> None:
    model, processor = tiny(settings)
    model.set_output_embeddings(None)
    with pytest.raises(TypeError, match="no LM head"):
        suppress_placeholders(model, processor)
