"""Loading and saving models: a round trip keeps the logits, and errors name the folder."""

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
from tests.support.gauge_world import ingested, noise_batch, tiny, write_params


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return write_params(tmp_path_factory.mktemp("params") / "params.yaml")


@pytest.fixture
def folder(settings: Settings, tmp_path: Path) -> Path:
    model, processor = tiny(settings)
    save(model, processor, tmp_path / "model")
    return tmp_path / "model"


def test_a_loaded_model_gives_the_logits_of_the_saved_one(settings: Settings, folder: Path) -> None:
    """Except for the placeholder tokens, which are suppressed."""
    model, processor = tiny(settings)
    loaded, again = load(folder, settings.model)
    batch = noise_batch(again, 3)
    with torch.no_grad():
        before, after = model(**batch).logits, loaded(**batch).logits
    suppressed = (before - after).amax(dim=(0, 1)) > 1000
    assert suppressed.nonzero().flatten().tolist() == sorted(
        processor.tokenizer.convert_tokens_to_ids(["<pad>", "<image>", "<fake_token_around_image>", "<global-img>"])
    )
    torch.testing.assert_close(before[..., ~suppressed], after[..., ~suppressed], rtol=0, atol=1e-6)


def test_a_question_with_a_special_token_of_the_model_is_refused(settings: Settings, folder: Path) -> None:
    """No pattern knows every model's tokens, so the tokenizer itself is asked before training starts."""
    task = settings.task.model_copy(update={"question": "What <fake_token_around_image> is it?"})
    model = settings.model.model_copy(update={"name": str(folder)})
    with pytest.raises(ConcordError, match=r"^task\.question: <fake_token_around_image> is a special token of "):
        base_model(settings.model_copy(update={"task": task, "model": model}), folder)


def test_saving_a_loaded_model_gives_the_same_bytes(settings: Settings, folder: Path, tmp_path: Path) -> None:
    model, processor = load(folder, settings.model)
    save(model, processor, tmp_path / "again")
    for name in ("model.safetensors", "tokenizer.json", "processor_config.json", "chat_template.jinja"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes(), name


def test_use_of_a_model_does_not_change_its_saved_files(settings: Settings, folder: Path, tmp_path: Path) -> None:
    model, processor = tiny(settings)
    noise_batch(processor, 3)  # padded to one length
    processor.tokenizer(["a", "b c d"], truncation=True, max_length=2)
    save(model, processor, tmp_path / "used")
    for file in folder.iterdir():
        assert (tmp_path / "used" / file.name).read_bytes() == file.read_bytes(), file.name


def test_dtype_attention_and_padding_side_follow_the_settings(settings: Settings, folder: Path, tmp_path: Path) -> None:
    chosen = settings.model.model_copy(update={"dtype": "bfloat16", "attention": "eager"})
    model, processor = load(folder, chosen, weights=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    save(model, processor, tmp_path / "half")
    for source, dtype in ((folder, torch.float32), (tmp_path / "half", torch.bfloat16)):
        assert {p.dtype for p in load(source, chosen)[0].parameters()} == {dtype}, "as stored"
    assert {p.dtype for p in load(tmp_path / "half", settings.model)[0].parameters()} == {torch.float32}
    assert model.config._attn_implementation == "eager"
    assert processor.tokenizer.padding_side == "left"


def truncated(folder: Path) -> None:
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


def with_another_size(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["text_config"]["intermediate_size"] += 1
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def with_broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{", encoding="utf-8")


def text_only(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama", "hidden_size": 32}', encoding="utf-8")


def without_processor(folder: Path) -> None:
    (folder / "processor_config.json").unlink()


def without_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def missing(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))


@pytest.mark.parametrize(
    "damage",
    [
        truncated, emptied, pickled, without_head, with_another_size, without_config, with_broken_config, text_only,
        without_processor, without_tokenizer, missing,
    ],
    ids=lambda damage: damage.__name__,
)  # fmt: skip
def test_damaged_folder_is_reported(damage: Callable[[Path], None], settings: Settings, folder: Path) -> None:
    damage(folder)
    with pytest.raises(ConcordError) as error:
        load(folder, settings.model)
    message = str(error.value)
    assert message.startswith(f"{folder}: ")
    assert "Give a hub id with its revision, or a folder" in message
    assert len(message.splitlines()) <= 3


def test_missing_weights_are_named(settings: Settings, folder: Path) -> None:
    """transformers would fill them with random values and continue."""
    without_head(folder)
    with pytest.raises(ConcordError, match=r"its weights lack lm_head\.weight"):
        load(folder, settings.model)


@pytest.mark.parametrize("name", ["no such hub id", "owner/name/more"])
def test_invalid_hub_id_is_reported(name: str, settings: Settings) -> None:
    with pytest.raises(ConcordError, match=f"^{name}: "):
        load(name, settings.model, "main")


def test_base_model_is_tiny_or_a_local_folder(settings: Settings, folder: Path, tmp_path: Path) -> None:
    ingest = ingested(tmp_path / "world")
    model, processor = base_model(settings, ingest)
    again: Any = base_model(settings, ingest)[0]
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    seed_1 = settings.model_copy(update={"sft": settings.sft.model_copy(update={"seed": 1})})
    other = base_model(seed_1, ingest)[0]
    assert not torch.equal(model.lm_head.weight, other.lm_head.weight)
    logits = model(**noise_batch(processor, 1)).logits
    assert logits[..., model.config.image_token_id].max() < -1000
    local = settings.model_copy(update={"model": settings.model.model_copy(update={"name": str(folder)})})
    from_folder, _ = base_model(local, ingest)
    assert torch.equal(from_folder.lm_head.weight, load(folder, settings.model)[0].lm_head.weight)


class WithQwenImages:
    """The part of Qwen2-VL's processor that takes the limit; the whole processor needs torchvision."""

    def __init__(self) -> None:
        self.image_processor = Qwen2VLImageProcessorPil(patch_size=14, merge_size=2)


def test_pixel_limit_shrinks_only_larger_images() -> None:
    processor = WithQwenImages()
    patches = {}
    for max_pixels in (None, 448 * 448):
        limit_pixels(processor, max_pixels)
        for side in (280, 896):
            image = Image.fromarray(np.zeros((side, side, 3), np.uint8))
            patches[max_pixels, side] = int(processor.image_processor(image)["image_grid_thw"].prod())
    assert patches[None, 896] == (896 // 14) ** 2
    assert patches[448 * 448, 896] == (448 // 14) ** 2
    assert patches[None, 280] == patches[448 * 448, 280] == (280 // 14) ** 2
    assert Qwen2VLImageProcessorPil(**processor.image_processor.to_dict()).size.longest_edge == 448 * 448, "saved"


def test_unsupported_pixel_limit_is_reported(settings: Settings, folder: Path, tmp_path: Path) -> None:
    limited = settings.model.model_copy(update={"max_pixels": 4096})
    message = r"model\.max_pixels: Idefics3ImageProcessor\w* has no limit in pixels\. Set it to null\."
    with pytest.raises(ConcordError, match=message):
        load(folder, limited)
    with pytest.raises(ConcordError, match=message):
        base_model(settings.model_copy(update={"model": limited}), ingested(tmp_path / "world"))
    with pytest.raises(ConcordError, match=r"model\.max_pixels: 100 is less than .* minimum of 3136 pixels"):
        limit_pixels(WithQwenImages(), 100)
