"""Placeholder tokens are impossible, whatever the head looks like, and nothing else changes."""

from typing import Any

import pytest
import torch
from torch import nn

from components.settings import Settings
from components.shared.model.suppression import SUPPRESSED, placeholder_ids, suppress_placeholders
from tests.support.gauge_world import asked, tiny, write_params


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return write_params(tmp_path_factory.mktemp("params") / "params.yaml")


def head_with_bias(model: Any) -> nn.Parameter:
    """Gives the model's LM head a bias of its own, as some architectures have."""
    head = nn.Linear(model.lm_head.in_features, model.lm_head.out_features)
    head.weight = model.lm_head.weight
    model.set_output_embeddings(head)
    return head.bias


def test_the_ids_are_the_placeholders_and_not_the_end(settings: Settings) -> None:
    model, processor = tiny(settings)
    names = processor.tokenizer.convert_ids_to_tokens(placeholder_ids(model, processor))
    assert sorted(names) == ["<fake_token_around_image>", "<global-img>", "<image>", "<pad>"]


def test_padding_that_ends_an_answer_too_stays_possible(settings: Settings) -> None:
    """Many models pad with their end token."""
    model, processor = tiny(settings)
    processor.tokenizer.pad_token = processor.tokenizer.eos_token
    model.generation_config.eos_token_id = [processor.tokenizer.eos_token_id, 99]
    model.generation_config.pad_token_id = processor.tokenizer.eos_token_id
    assert processor.tokenizer.eos_token_id not in placeholder_ids(model, processor)


@pytest.mark.parametrize("biased", [False, True])
def test_only_the_placeholders_change(biased: bool, settings: Settings) -> None:
    model, processor = tiny(settings)
    if biased:
        head_with_bias(model)
    batch = asked(processor, 3)
    with torch.no_grad():
        before = model(**batch).logits
        ids = suppress_placeholders(model, processor)
        after = model(**batch).logits
    others = [i for i in range(before.shape[-1]) if i not in ids]
    torch.testing.assert_close(after[..., others], before[..., others], rtol=0, atol=1e-6)
    assert after[..., ids].max() < SUPPRESSED / 2
    assert torch.softmax(after, -1)[..., ids].max() == 0


def test_a_bias_of_the_head_s_own_is_trained_but_for_the_placeholders(settings: Settings) -> None:
    model, processor = tiny(settings)
    bias = head_with_bias(model)
    ids = suppress_placeholders(model, processor)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.0)
    start = bias.detach().clone()
    batch = asked(processor, 3)
    labels = batch["input_ids"].masked_fill(torch.isin(batch["input_ids"], torch.tensor(ids)), -100)
    for _ in range(3):
        model(**batch, labels=labels).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    changed = (bias.detach() != start).nonzero().flatten().tolist()
    assert len(changed) > 50
    assert not set(changed) & set(ids)


def test_it_survives_dtype_and_a_second_call(settings: Settings) -> None:
    model, processor = tiny(settings)
    ids = suppress_placeholders(model, processor)
    assert suppress_placeholders(model, processor) == ids
    model.to(torch.bfloat16)
    with torch.no_grad():
        batch = asked(processor, 1)
        batch["pixel_values"] = batch["pixel_values"].to(torch.bfloat16)
        logits = model(**batch).logits
    assert logits.isfinite().all()
    assert torch.softmax(logits.float(), -1)[..., ids].max() == 0


def test_it_is_in_no_saved_state(settings: Settings) -> None:
    model, processor = tiny(settings)
    before = set(model.state_dict())
    suppress_placeholders(model, processor)
    assert set(model.state_dict()) == before


def test_a_model_without_a_head_is_told(settings: Settings) -> None:
    model, processor = tiny(settings)
    model.set_output_embeddings(None)
    with pytest.raises(TypeError, match="no LM head"):
        suppress_placeholders(model, processor)
