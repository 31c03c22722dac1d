"""Greedy answers: the batch does not change the text, and plain transformers gives the same."""

import io
from typing import Any

import pyarrow as pa
import pytest
import torch
from PIL import Image

from components.settings import Settings
from components.shared.model.generation import answer
from components.shared.model.loading import load, save
from components.shared.model.prompts import prompt_with_image
from tests.support.gauge_world import QUESTIONS, tiny, write_params
from tests.support.raw_folder import encoded

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
