"""An adapter beside its base: what is loaded is what was trained, which merging would lose."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForImageTextToText

from components.errors import ConcordError
from components.settings import Settings
from components.shared.model.adapter import ADAPTER, CONFIG, WEIGHTS
from components.shared.model.generation import inference
from components.shared.model.loading import load, save
from components.shared.model.lora import trainable
from components.shared.model.precision import compute_in
from components.shared.model.suppression import suppress_placeholders
from tests.support.gauge_world import LORA, noise_batch, tiny, write_params


@dataclass(frozen=True)
class Trained:
    """A bfloat16 model whose adapter was trained with the learning rate of the recipes, and its folder.

    Attributes:
        before, after: its log-probabilities in memory before and after the training.
        adapter: its weights in memory.
        batch: the inputs that it was trained on.
    """

    settings: Settings
    folder: Path
    base: dict[str, Tensor]
    adapter: dict[str, Tensor]
    batch: dict[str, Tensor]
    before: Tensor
    after: Tensor

    def lost(self, model: Any) -> float:
        """How far the model is from the trained one, as a share of what training changed."""
        return float((log_probs(model, self.batch) - self.after).norm() / (self.after - self.before).norm())


def log_probs(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Of the tokens that are not suppressed, at the ends of the texts."""
    with inference(model):
        scores: Tensor = model(**batch).logits[:, -6:].float().log_softmax(dim=-1)
    return scores[..., scores[0, 0] > -100]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    lora = {**LORA, "dropout": 0.0}
    settings = write_params(folder / "params.yaml", model={"dtype": "bfloat16", "lora": lora, "freeze_vision": True})
    model, processor = tiny(settings)
    for weight in model.parameters():
        weight.data = weight.data.to(torch.bfloat16)
    model.set_attn_implementation(settings.model.attention)
    suppress_placeholders(model, processor)
    compute_in(model, torch.bfloat16)
    base = {name: weight.clone() for name, weight in model.state_dict().items()}
    batch = {
        name: value.to(torch.bfloat16) if value.is_floating_point() else value
        for name, value in noise_batch(processor, 4).items()
    }
    before = log_probs(model, batch)
    torch.manual_seed(0)
    adapted: Any = trainable(model, settings.model)
    weights = {name: weight for name, weight in adapted.named_parameters() if weight.requires_grad}
    optimizer = torch.optim.AdamW(weights.values(), lr=1e-5)
    for _ in range(30):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = adapted(**batch, labels=batch["input_ids"]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    save(adapted, processor, folder / "model")
    adapter = {name.replace(".default.", "."): weight.detach().clone() for name, weight in weights.items()}
    return Trained(settings, folder / "model", base, adapter, batch, before, log_probs(adapted, batch))


def test_a_loaded_model_gives_the_probabilities_of_the_trained_one_and_a_merged_one_does_not(trained: Trained) -> None:
    """Equal to the last bit. Merging loses over half of the change, also where the sum is kept in float32, since the
    passes round it to bfloat16."""
    assert trained.lost(load(trained.folder, trained.settings.model)[0]) == 0
    for dtype in (torch.bfloat16, torch.float32):
        loaded: Any = load(trained.folder, trained.settings.model, weights=dtype)[0]
        assert trained.lost(loaded.merge_and_unload()) > 0.5


def test_base_and_adapter_are_stored_apart(trained: Trained) -> None:
    stored = load_file(trained.folder / "model.safetensors")
    assert stored.keys() == trained.base.keys()
    assert all(torch.equal(weight, trained.base[name]) for name, weight in stored.items())
    assert {weight.dtype for weight in stored.values()} == {torch.bfloat16}
    adapter = load_file(trained.folder / ADAPTER / WEIGHTS)
    assert adapter.keys() == trained.adapter.keys()
    assert all(torch.equal(weight, trained.adapter[name]) for name, weight in adapter.items())
    assert {weight.dtype for weight in adapter.values()} == {torch.float32}


def test_the_adapters_bytes_depend_on_no_path_and_no_order_of_sets(trained: Trained) -> None:
    config = json.loads((trained.folder / ADAPTER / CONFIG).read_text())
    assert config["base_model_name_or_path"] is None
    assert config["target_modules"] == sorted(config["target_modules"])
    assert {path.name for path in (trained.folder / ADAPTER).iterdir()} == {CONFIG, WEIGHTS}
    with safe_open(trained.folder / ADAPTER / WEIGHTS, "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_a_model_that_is_loaded_and_saved_has_the_same_bytes(trained: Trained, tmp_path: Path) -> None:
    model, processor = load(trained.folder, trained.settings.model)
    save(model, processor, tmp_path / "again")
    for name in ("model.safetensors", f"{ADAPTER}/{CONFIG}", f"{ADAPTER}/{WEIGHTS}"):
        assert (tmp_path / "again" / name).read_bytes() == (trained.folder / name).read_bytes()


def test_transformers_loads_base_and_adapter(trained: Trained) -> None:
    """As the model card does."""
    model = AutoModelForImageTextToText.from_pretrained(trained.folder)
    model.load_adapter(str(trained.folder / ADAPTER))
    model.set_attn_implementation(trained.settings.model.attention)
    suppress_placeholders(model, load(trained.folder, trained.settings.model)[1])
    compute_in(model, torch.bfloat16)
    assert trained.lost(model) < 0.1


def test_a_loaded_adapter_is_float32_and_frozen_and_draws_no_random_numbers(trained: Trained) -> None:
    torch.manual_seed(5)
    model = load(trained.folder, trained.settings.model)[0]
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))
    assert not model.training
    dtypes = {("lora_" in name, weight.dtype) for name, weight in model.named_parameters()}
    assert dtypes == {(True, torch.float32), (False, torch.bfloat16)}
    assert not [name for name, weight in model.named_parameters() if weight.requires_grad]


def broken(trained: Trained, folder: Path) -> Path:
    """A copy of the folder whose adapter a test breaks."""
    model, processor = load(trained.folder, trained.settings.model)
    save(model, processor, folder)
    return folder


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
@pytest.mark.parametrize("content", [None, b"", b"x" * 20], ids=["missing", "empty", "cut"])
def test_an_adapter_that_cannot_be_read_is_an_error(
    name: str, content: bytes | None, trained: Trained, tmp_path: Path
) -> None:
    file = broken(trained, tmp_path / "model") / ADAPTER / name
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConcordError, match=rf"model/adapter: .*{CONFIG} and {WEIGHTS}\. Restore the folder"):
        load(tmp_path / "model", trained.settings.model)


@pytest.mark.parametrize("change", ["lacks one", "has one more", "other size"])
def test_an_adapter_of_another_model_is_an_error(change: str, trained: Trained, tmp_path: Path) -> None:
    """peft only warns, and leaves random weights where some are missing."""
    file = broken(trained, tmp_path / "model") / ADAPTER / WEIGHTS
    weights = load_file(file)
    name = sorted(weights)[0]
    if change == "lacks one":
        del weights[name]
    elif change == "has one more":
        weights[name.replace("layers.0", "layers.7").replace("connector", "other")] = weights[name].clone()
    else:
        weights[name] = weights[name][:, 1:].contiguous()
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ConcordError, match=r"model/adapter: .*Restore the folder"):
        load(tmp_path / "model", trained.settings.model)


def test_an_adapter_is_trained_further_as_it_is(trained: Trained) -> None:
    model: Any = trainable(load(trained.folder, trained.settings.model)[0], trained.settings.model)
    assert trained.lost(model) == 0
    free = {name.replace(".default.", ".") for name, weight in model.named_parameters() if weight.requires_grad}
    assert free == trained.adapter.keys()


@pytest.mark.parametrize(
    ("changes", "asked"),
    [
        ({"lora": None}, "null"),
        ({"lora": {"r": 5}}, "r 5, alpha 8, dropout 0 on 15 modules"),
        ({"lora": {"alpha": 9}}, "r 4, alpha 9, dropout 0 on 15 modules"),
        ({"lora": {"dropout": 0.5}}, "r 4, alpha 8, dropout 0.5 on 15 modules"),
        ({"lora": {"targets": ["q_proj", "v_proj"]}}, "r 4, alpha 8, dropout 0 on 4 modules"),
        ({"freeze_vision": False}, "r 4, alpha 8, dropout 0 on 27 modules"),
    ],
    ids=["none", "r", "alpha", "dropout", "targets", "vision"],
)
def test_settings_that_ask_for_another_adapter_are_an_error(
    changes: dict[str, Any], asked: str, trained: Trained
) -> None:
    settings = trained.settings.model
    assert settings.lora is not None
    if changes.get("lora"):
        changes = {"lora": settings.lora.model_copy(update=changes["lora"])}
    model = load(trained.folder, settings)[0]
    with pytest.raises(ConcordError, match=rf"model\.lora: {asked}, .* r 4, alpha 8, dropout 0 on 15 modules"):
        trainable(model, settings.model_copy(update=changes))
