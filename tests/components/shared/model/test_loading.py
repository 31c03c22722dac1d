"""Loading and saving models: the same numbers back, and a fault told with its place."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import Qwen2VLImageProcessorPil

from components.errors import ConcordError
from components.settings import Settings
from components.shared.model.loading import base_model, limit_pixels, load, save
from tests.support.gauge_world import asked, ingested, tiny, write_params


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return write_params(tmp_path_factory.mktemp("params") / "params.yaml")


@pytest.fixture
def folder(settings: Settings, tmp_path: Path) -> Path:
    model, processor = tiny(settings)
    save(model, processor, tmp_path / "model")
    return tmp_path / "model"


def test_a_loaded_model_gives_the_logits_of_the_saved_one(settings: Settings, folder: Path) -> None:
    """But for the placeholders, which it cannot emit."""
    model, processor = tiny(settings)
    loaded, again = load(folder, settings.model)
    batch = asked(again, 3)
    with torch.no_grad():
        before, after = model(**batch).logits, loaded(**batch).logits
    suppressed = (before - after).amax(dim=(0, 1)) > 1000
    assert suppressed.nonzero().flatten().tolist() == sorted(
        processor.tokenizer.convert_tokens_to_ids(["<pad>", "<image>", "<fake_token_around_image>", "<global-img>"])
    )
    torch.testing.assert_close(before[..., ~suppressed], after[..., ~suppressed], rtol=0, atol=1e-6)


def test_saved_again_it_is_the_same_bytes(settings: Settings, folder: Path, tmp_path: Path) -> None:
    model, processor = load(folder, settings.model)
    save(model, processor, tmp_path / "again")
    for name in ("model.safetensors", "tokenizer.json", "processor_config.json", "chat_template.jinja"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes(), name


def test_use_leaves_no_trace_in_what_is_saved(settings: Settings, folder: Path, tmp_path: Path) -> None:
    model, processor = tiny(settings)
    asked(processor, 3)  # padded to one length
    processor.tokenizer(["a", "b c d"], truncation=True, max_length=2)
    save(model, processor, tmp_path / "used")
    for file in folder.iterdir():
        assert (tmp_path / "used" / file.name).read_bytes() == file.read_bytes(), file.name


def test_dtype_and_padding(settings: Settings, folder: Path) -> None:
    model, processor = load(folder, settings.model.model_copy(update={"dtype": "bfloat16", "attention": "eager"}))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.config._attn_implementation == "eager"
    assert processor.tokenizer.padding_side == "left"


def cut(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])


def emptied(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def without_head(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "lm_head" not in k}, folder / "model.safetensors", {"format": "pt"})


def of_another_size(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["text_config"]["intermediate_size"] += 1
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def with_broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{", encoding="utf-8")


def of_text_alone(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama", "hidden_size": 32}', encoding="utf-8")


def without_processor(folder: Path) -> None:
    (folder / "processor_config.json").unlink()


def without_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def gone(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))


@pytest.mark.parametrize(
    "damage",
    [
        cut, emptied, pickled, without_head, of_another_size, without_config, with_broken_config, of_text_alone,
        without_processor, without_tokenizer, gone,
    ],
    ids=lambda damage: damage.__name__,
)  # fmt: skip
def test_what_cannot_be_loaded_is_named(damage: Callable[[Path], None], settings: Settings, folder: Path) -> None:
    damage(folder)
    with pytest.raises(ConcordError) as error:
        load(folder, settings.model)
    message = str(error.value)
    assert message.startswith(f"{folder}: ")
    assert "Give a hub id with its revision, or a folder" in message
    assert len(message.splitlines()) <= 3


def test_missing_weights_are_named(settings: Settings, folder: Path) -> None:
    """transformers would fill them with random values and go on."""
    without_head(folder)
    with pytest.raises(ConcordError, match=r"its weights lack lm_head\.weight"):
        load(folder, settings.model)


@pytest.mark.parametrize("name", ["no such hub id", "owner/name/more"])
def test_a_name_that_no_hub_can_have(name: str, settings: Settings) -> None:
    with pytest.raises(ConcordError, match=f"^{name}: "):
        load(name, settings.model, "main")


def test_where_training_starts_from(settings: Settings, folder: Path, tmp_path: Path) -> None:
    """The tiny model with weights of the seed, or what the folder holds."""
    ingest = ingested(tmp_path / "world")
    model, processor = base_model(settings, ingest)
    again: Any = base_model(settings, ingest)[0]
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    seed_1 = settings.model_copy(update={"sft": settings.sft.model_copy(update={"seed": 1})})
    other = base_model(seed_1, ingest)[0]
    assert not torch.equal(model.lm_head.weight, other.lm_head.weight)
    logits = model(**asked(processor, 1)).logits
    assert logits[..., model.config.image_token_id].max() < -1000
    local = settings.model_copy(update={"model": settings.model.model_copy(update={"name": str(folder)})})
    given, _ = base_model(local, ingest)
    assert torch.equal(given.lm_head.weight, load(folder, settings.model)[0].lm_head.weight)


class WithQwenImages:
    """What of a processor takes the limit; the whole of Qwen2-VL's wants torchvision."""

    def __init__(self) -> None:
        self.image_processor = Qwen2VLImageProcessorPil(patch_size=14, merge_size=2)


def test_large_pictures_are_made_smaller_and_small_ones_are_not() -> None:
    processor = WithQwenImages()
    patches = {}
    for most in (None, 448 * 448):
        limit_pixels(processor, most)
        for side in (280, 896):
            picture = Image.fromarray(np.zeros((side, side, 3), np.uint8))
            patches[most, side] = int(processor.image_processor(picture)["image_grid_thw"].prod())
    assert patches[None, 896] == (896 // 14) ** 2
    assert patches[448 * 448, 896] == (448 // 14) ** 2
    assert patches[None, 280] == patches[448 * 448, 280] == (280 // 14) ** 2
    assert Qwen2VLImageProcessorPil(**processor.image_processor.to_dict()).size.longest_edge == 448 * 448, "saved"


def test_a_limit_that_the_processor_cannot_keep_is_named(settings: Settings, folder: Path, tmp_path: Path) -> None:
    limited = settings.model.model_copy(update={"max_pixels": 4096})
    told = r"model\.max_pixels: Idefics3ImageProcessor\w* goes by no number of pixels\. Set it to null\."
    with pytest.raises(ConcordError, match=told):
        load(folder, limited)
    with pytest.raises(ConcordError, match=told):
        base_model(settings.model_copy(update={"model": limited}), ingested(tmp_path / "world"))
    with pytest.raises(ConcordError, match=r"model\.max_pixels: 100 is less than the 3136 pixels"):
        limit_pixels(WithQwenImages(), 100)
