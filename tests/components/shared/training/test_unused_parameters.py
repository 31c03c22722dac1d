"""Which models have trained parameters without a use."""

from pathlib import Path
from typing import Any

import pytest
import torch

from components.shared.model.loading import load
from components.shared.model.lora import trainable
from components.shared.training.unused_parameters import has_unused_parameters
from tests.support.grpo_training import ADAPTER, save_llava, save_tiny, small_settings


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "idefics3": save_tiny(small_settings(), folder / "idefics3"),
        "llava": save_llava(folder / "llava", small_settings()),
    }


@pytest.mark.parametrize(
    ("name", "model", "unused"),
    [
        ("idefics3", {}, False),
        ("idefics3", {"freeze_vision": True}, False),
        ("idefics3", {"lora": ADAPTER}, False),
        ("idefics3", {"dtype": "bfloat16"}, False),
        ("llava", {}, True),
        ("llava", {"freeze_vision": True}, False),
        ("llava", {"lora": ADAPTER}, False),  # the unused norm has no adapter
    ],
)
def test_unused_parameters_are_found(name: str, model: dict[str, Any], unused: bool, folders: dict[str, Path]) -> None:
    settings = small_settings().model.model_copy(update=model)
    loaded, processor = load(folders[name], settings)
    chosen: Any = trainable(loaded, settings)
    before = {key: weight.clone() for key, weight in chosen.state_dict().items()}
    drawn = torch.random.get_rng_state()
    assert has_unused_parameters(chosen, processor) == unused
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert all(torch.equal(before[key], weight) for key, weight in chosen.state_dict().items())
    assert all(weight.grad is None for weight in chosen.parameters())
