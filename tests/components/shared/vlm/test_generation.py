"""Greedy answers: the batch does not change the text, and plain transformers gives the same."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from components.settings import Settings
from components.shared.vlm.generation import answer, decode_image
from components.shared.vlm.models import load, save
from components.shared.vlm.prompts import prompt_with_image
from tests.components.gauge_world import QUESTIONS, tiny, write_params
from tests.components.raw_folder import encoded

COUNT = 9


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return write_params(tmp_path_factory.mktemp("params") / "params.yaml")


@pytest.fixture(scope="module")
def pair(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A model whose answers differ from image to image, as an untrained one's do once its head is turned up."""
    model, processor = tiny(settings)
    with torch.no_grad():
        for module in (model.model.text_model.layers, model.model.connector):
            for weight in module.parameters():
                weight.mul_(3)
    save(model, processor, folder := tmp_path_factory.mktemp("model"))
    return load(folder, settings.model)


def rows(batch: int = COUNT) -> list[pa.RecordBatch]:
    """Images with questions of three lengths, in record batches of some size."""
    table = pa.table(
        {
            "id": [f"row-{k}" for k in range(COUNT)],
            "image": [{"bytes": encoded(k, size=32)} for k in range(COUNT)],
            "question": [QUESTIONS[k % 3] for k in range(COUNT)],
        }
    )
    return table.to_batches(max_chunksize=batch)


def answers(pair: Any, batch_size: int, chunk: int = COUNT) -> dict[str, str]:
    found: dict[str, str] = {}
    for ids, texts in answer(*pair, rows(chunk), batch_size, 5):
        assert len(ids) == len(texts) <= batch_size
        found |= dict(zip(ids, texts, strict=True))
    return found


def test_the_batch_does_not_change_the_text(pair: Any) -> None:
    alone = answers(pair, 1)
    assert list(alone) == [f"row-{k}" for k in range(COUNT)]
    assert len(set(alone.values())) > 3, "the answers are to differ"
    assert answers(pair, COUNT) == answers(pair, 4) == answers(pair, 4, chunk=5) == alone


def test_it_is_plain_greedy_generation(pair: Any) -> None:
    model, processor = pair
    found = answers(pair, COUNT)
    for k, (_, text) in enumerate(found.items()):
        asked = processor.apply_chat_template(prompt_with_image(QUESTIONS[k % 3]), add_generation_prompt=True)
        image = Image.open(io.BytesIO(encoded(k, size=32)))
        batch = processor(text=asked, images=[[image]], return_tensors="pt")
        whole = model.generate(**batch, max_new_tokens=5, do_sample=False)
        expected = processor.tokenizer.decode(whole[0, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        assert text == expected


def test_a_placeholder_is_never_answered(pair: Any) -> None:
    """Special tokens would not be seen in the text; so the tokens are looked at."""
    model, processor = pair
    asked = processor.apply_chat_template(prompt_with_image("?"), add_generation_prompt=True)
    image = Image.open(io.BytesIO(encoded(0, size=32)))
    batch = processor(text=asked, images=[[image]], return_tensors="pt")
    logits = torch.nn.functional.log_softmax(model(**batch).logits, -1)
    assert logits[..., model.config.image_token_id].max() < -1000


def test_the_model_is_left_as_it_was(pair: Any) -> None:
    model, _ = pair
    for mode in (True, False):
        model.train(mode)
        iterator = answer(*pair, rows(), 2, 3)
        next(iterator)
        assert not model.training
        iterator.close()
        assert model.training is mode
    assert all(weight.grad is None for weight in model.parameters())


def test_nothing_asked_nothing_answered(pair: Any) -> None:
    assert list(answer(*pair, [], 4, 5)) == []


# Images as they come.


def saved(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    image = decode_image(saved(Image.new("RGB", (5, 4), (255, 255, 255)).convert(mode), "PNG"))
    assert (image.mode, image.size) == ("RGB", (5, 4))
    assert np.asarray(image).min() > 250


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(orientation: int) -> None:
    """A phone stores what its sensor saw, and a tag that says how it was held. Red belongs to the top left corner."""
    upright = Image.new("RGB", (32, 16), (0, 0, 255))
    upright.paste((255, 0, 0), (0, 0, 16, 8))
    ops = Image.Transpose
    # What the sensor saw, if turning it back by the tag is to give the upright picture.
    stored = {
        2: ops.FLIP_LEFT_RIGHT, 3: ops.ROTATE_180, 4: ops.FLIP_TOP_BOTTOM, 5: ops.TRANSPOSE, 6: ops.ROTATE_90,
        7: ops.TRANSVERSE, 8: ops.ROTATE_270,
    }  # fmt: skip
    seen = upright.transpose(stored[orientation]) if orientation in stored else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode_image(saved(seen, "JPEG", exif=exif, quality=95))
    assert image.size == (32, 16)
    assert np.abs(np.asarray(image, int) - np.asarray(upright, int)).mean() < 10


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_broken_tag_is_no_fault() -> None:
    broken = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0"
    assert decode_image(saved(Image.new("RGB", (4, 2)), "JPEG", exif=broken)).size == (4, 2)


def test_files_stay_closed(tmp_path: Path) -> None:
    image = decode_image(encoded(0))
    image.load()  # pixels are in memory, though the stream is gone
    assert np.asarray(image).shape == (12, 12, 3)
