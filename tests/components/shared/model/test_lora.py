"""Which weights are trained, and the reference of an adapter."""

from typing import Any

import pytest
import torch
from torch import nn

from components.errors import ConcordError
from components.settings import Lora, Model, Settings
from components.shared.model.lora import REFERENCE, add_reference, trainable, vision_tower
from tests.support.gauge_world import LORA, noise_batch, tiny, write_params


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return write_params(tmp_path_factory.mktemp("params") / "params.yaml")


def chosen(settings: Settings, *, freeze: bool, targets: Any = None, dropout: float = 0.0) -> Model:
    lora = Lora.model_validate({**LORA, "targets": targets, "dropout": dropout}) if targets else None
    return settings.model.model_copy(update={"freeze_vision": freeze, "lora": lora})


def gradients(model: nn.Module, processor: Any) -> dict[str, float]:
    """Parameters that get a gradient, with its norm."""
    batch = noise_batch(processor, 3)
    model(**batch, labels=batch["input_ids"]).loss.backward()
    return {name: float(p.grad.norm()) for name, p in model.named_parameters() if p.grad is not None}


def test_all_weights_are_trained_by_default(settings: Settings) -> None:
    model, processor = tiny(settings)
    trained = trainable(model, chosen(settings, freeze=False))
    assert trained is model
    assert {name for name, _ in model.named_parameters()} == gradients(trained, processor).keys()


def test_frozen_vision_tower_gets_no_gradient(settings: Settings) -> None:
    model, processor = tiny(settings)
    trained = trainable(model, chosen(settings, freeze=True))
    norms = gradients(trained, processor)
    frozen = {name for name, _ in model.named_parameters() if name.startswith("model.vision_model.")}
    assert len(frozen) > 10
    assert norms.keys() == {name for name, _ in model.named_parameters()} - frozen
    assert all(size > 0 for name, size in norms.items() if "connector" in name)


@pytest.mark.parametrize("freeze", [False, True])
def test_only_adapters_are_trained(freeze: bool, settings: Settings) -> None:
    model, processor = tiny(settings)
    plain = {name for name, _ in model.named_parameters()}
    trained = trainable(model, chosen(settings, freeze=freeze, targets="all-linear"))
    norms = gradients(trained, processor)
    assert norms
    assert all("lora_" in name for name in norms)
    assert any(".text_model." in name for name in norms)
    assert any(".vision_model." in name for name in norms) is not freeze
    assert not any("lm_head" in name for name in norms)
    count = sum(p.numel() for p in trained.parameters() if p.requires_grad)
    assert count < 0.3 * sum(p.numel() for p in trained.parameters())
    assert plain  # peft renames the weights, it does not replace them


def test_adapters_are_added_only_to_the_named_modules(settings: Settings) -> None:
    model, processor = tiny(settings)
    norms = gradients(trainable(model, chosen(settings, freeze=True, targets=["q_proj", "v_proj"])), processor)
    assert len(norms) == 2 * 2 * 2  # layers, modules, two matrices each
    assert all(".q_proj." in name or ".v_proj." in name for name in norms)


def test_the_reference_is_the_adapter_as_it_was_and_is_not_trained(settings: Settings) -> None:
    model, processor = tiny(settings)
    adapted: Any = trainable(model, chosen(settings, freeze=True, targets="all-linear"))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:  # initially zero, so that new adapters have no effect
            nn.init.normal_(weight, std=0.2)
    batch = noise_batch(processor, 3)
    with torch.no_grad():
        before = adapted.eval()(**batch).logits
    add_reference(adapted)
    free = [weight for weight in adapted.parameters() if weight.requires_grad]
    assert gradients(adapted, processor).keys() == {
        name for name, _ in adapted.named_parameters() if ".default." in name
    }
    with torch.no_grad():
        for weight in free:
            weight += 0.1
        assert not torch.equal(adapted(**batch).logits, before)
        adapted.set_adapter(REFERENCE)
        assert torch.equal(adapted(**batch).logits, before)


def test_new_adapters_do_not_change_the_logits(settings: Settings) -> None:
    model, processor = tiny(settings)
    batch = noise_batch(processor, 2)
    with torch.no_grad():
        before = model(**batch).logits
        after = trainable(model, chosen(settings, freeze=False, targets="all-linear")).eval()(**batch).logits
    assert torch.equal(before, after)


def test_missing_vision_tower_is_reported() -> None:
    with pytest.raises(ConcordError, match=r"model\.freeze_vision: Linear has no vision tower"):
        vision_tower(nn.Linear(2, 2))
