"""Greedy answers do not depend on the batch, and equal those of plain transformers."""

import io
from collections.abc import Generator
from typing import Any

import pyarrow as pa
import pytest
import torch
from PIL import Image

from components.settings import Settings
from components.shared.model import generation
from components.shared.model.generation import generate_answers, image_batches
from components.shared.model.loading import load, save
from components.shared.model.prompts import prompt_with_image
from tests.support.gauge_world import QUESTIONS, tiny, write_params
from tests.support.raw_folder import encoded

COUNT = 9
Pair = tuple[Any, Any]  # model and processor


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return write_params(tmp_path_factory.mktemp("params") / "params.yaml")


@pytest.fixture(scope="module")
def pair(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A model and processor; the untrained weights are enlarged, so that answers differ between images."""
    model, processor = tiny(settings)
    with torch.no_grad():
        for module in (model.model.text_model.layers, model.model.connector):
            for weight in module.parameters():
                weight.mul_(3)
    save(model, processor, folder := tmp_path_factory.mktemp("model"))
    return load(folder, settings.model)


def rows(batch: int = COUNT) -> list[pa.RecordBatch]:
    """Images with questions of three lengths, in record batches of at most `batch` rows."""
    table = pa.table(
        {
            "id": [f"row-{k}" for k in range(COUNT)],
            "image": [{"bytes": encoded(k, size=32)} for k in range(COUNT)],
            "question": [QUESTIONS[k % 3] for k in range(COUNT)],
        }
    )
    return table.to_batches(max_chunksize=batch)


def answers(pair: Pair, batch_size: int, chunk: int = COUNT) -> dict[str, str]:
    texts_by_id: dict[str, str] = {}
    for ids, texts in generate_answers(*pair, rows(chunk), batch_size, 5):
        assert len(ids) == len(texts) <= batch_size
        texts_by_id |= dict(zip(ids, texts, strict=True))
    return texts_by_id


def test_batch_size_does_not_change_the_text(pair: Pair) -> None:
    alone = answers(pair, 1)
    assert list(alone) == [f"row-{k}" for k in range(COUNT)]
    assert len(set(alone.values())) > 3, "the answers must differ between images"
    assert answers(pair, COUNT) == answers(pair, 4) == answers(pair, 4, chunk=5) == alone


def test_answers_equal_plain_greedy_generation(pair: Pair) -> None:
    model, processor = pair
    for k, text in enumerate(answers(pair, COUNT).values()):
        prompt = processor.apply_chat_template(prompt_with_image(QUESTIONS[k % 3]), add_generation_prompt=True)
        image = Image.open(io.BytesIO(encoded(k, size=32)))
        batch = processor(text=prompt, images=[[image]], return_tensors="pt")
        whole = model.generate(**batch, max_new_tokens=5, do_sample=False)
        expected = processor.tokenizer.decode(whole[0, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        assert text == expected


def test_placeholder_tokens_have_no_probability(pair: Pair) -> None:
    """Decoded text omits special tokens, so this test looks at the logits."""
    model, processor = pair
    prompt = processor.apply_chat_template(prompt_with_image("?"), add_generation_prompt=True)
    image = Image.open(io.BytesIO(encoded(0, size=32)))
    batch = processor(text=prompt, images=[[image]], return_tensors="pt")
    logits = torch.nn.functional.log_softmax(model(**batch).logits, -1)
    assert logits[..., model.config.image_token_id].max() < -1000


def test_training_mode_is_restored_after_generation(pair: Pair) -> None:
    model, _ = pair
    for mode in (True, False):
        model.train(mode)
        iterator = generate_answers(*pair, rows(), 2, 3)
        assert isinstance(iterator, Generator)
        next(iterator)
        assert not model.training
        iterator.close()
        assert model.training is mode
    assert all(weight.grad is None for weight in model.parameters())


def test_a_batch_of_large_images_is_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the memory of the decoded images; ids keep their order, and unreadable ones are left out."""
    sides = [10, 100, 100, 10, 0, 100, 10]
    images = [{"bytes": encoded(k, size=side) if side else b"x"} for k, side in enumerate(sides)]
    rows = pa.table({"id": list("abcdefg"), "image": images, "question": ["q"] * 7}).to_batches()
    for limit, expected in ((1 << 30, ["abcdfg"]), (2 * 4 * 100**2, ["abc", "dfg"]), (1, list("abcdfg"))):
        monkeypatch.setattr(generation, "MAX_BATCH_BYTES", limit)
        unreadable: dict[str, str] = {}
        found = list(image_batches(rows, 7, unreadable))
        assert ["".join(ids) for ids, _, _ in found] == expected
        assert [image.width for _, images, _ in found for image in images] == [10, 100, 100, 10, 100, 10]
        assert list(unreadable) == ["e"]


def test_no_rows_give_no_answers(pair: Pair) -> None:
    assert list(generate_answers(*pair, [], 4, 5)) == []
