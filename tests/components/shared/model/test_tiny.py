"""The tiny model: its tokenizer encodes any text, its answers are short, and its weights depend on the seed alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from components.settings import Settings, load_settings
from components.shared.model.prompts import completion, max_answer_tokens, prompt_with_image
from components.shared.model.tiny import build_model, build_processor, build_tokenizer, sinusoidal_positions
from components.shared.scoring.answers import format_answer, parse_answer
from tests.support.gauge_world import QUESTIONS, ROOT, noise_batch, tiny, write_params

TOKENIZER = build_tokenizer(QUESTIONS)
SPECIAL = ("<pad>", "<|im_start|>", "<end_of_utterance>", "<image>", "<fake_token_around_image>", "<global-img>")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return write_params(tmp_path_factory.mktemp("params") / "params.yaml")


@pytest.fixture(scope="module")
def pair(settings: Settings) -> tuple[Any, Any]:
    return tiny(settings)


@pytest.mark.parametrize("resolution", [1.0, 0.1, 0.25])
def test_answers_survive_the_tokenizer(resolution: float) -> None:
    for step in range(0, 401):
        text = format_answer(step * resolution - 10, resolution)
        ids = TOKENIZER(text).input_ids
        assert TOKENIZER.decode(ids) == text
        assert TOKENIZER.decode([*ids, TOKENIZER.eos_token_id], skip_special_tokens=True) == text
        assert parse_answer(TOKENIZER.decode(ids), -1000, 1000) == pytest.approx(step * resolution - 10)


def test_every_digit_is_a_separate_token() -> None:
    digits = {TOKENIZER(str(digit)).input_ids[0] for digit in range(10)}
    assert len(digits) == 10
    ids = TOKENIZER("<answer> 1234567890 </answer>").input_ids
    assert len(ids) == 12
    assert set(ids[1:-1]) == digits


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_question_survives_the_tokenizer(question: str) -> None:
    assert TOKENIZER.decode(TOKENIZER(question).input_ids) == question


def test_order_of_questions_does_not_change_the_tokenizer() -> None:
    again = build_tokenizer(list(reversed(QUESTIONS)))
    assert again.backend_tokenizer.to_str() == TOKENIZER.backend_tokenizer.to_str()
    assert len(build_tokenizer([]).get_vocab()) >= 256 + len(SPECIAL)


def test_special_tokens_are_single_tokens() -> None:
    for token in SPECIAL:
        assert len(TOKENIZER(token).input_ids) == 1
    assert (TOKENIZER.pad_token, TOKENIZER.eos_token, TOKENIZER.padding_side) == (SPECIAL[0], SPECIAL[2], "left")


def test_answers_of_the_default_experiment_take_six_tokens() -> None:
    """Opening tag, three digits, closing tag, end."""
    settings = load_settings(ROOT / "params.yaml")
    processor = build_processor(settings.model.tiny, [settings.task.question])  # type: ignore[arg-type]
    assert max_answer_tokens(processor, settings.task) == 6


@pytest.mark.parametrize(
    ("low", "high", "resolution", "expected"),
    [(0, 100, 1, 6), (0, 9, 1, 4), (-5, 9, 1, 5), (0, 1000, 0.1, 9), (0, 9999, 1, 7), (1, 228, 0.25, 9)],
)
def test_max_answer_tokens(low: float, high: float, resolution: float, expected: int, pair: Any) -> None:
    """Two tags and the end, plus one token per sign, digit and decimal point."""
    _, processor = pair
    task = load_settings(ROOT / "params.yaml").task
    changed = task.model_copy(update={"low": float(low), "high": float(high), "resolution": float(resolution)})
    assert max_answer_tokens(processor, changed) == expected


def test_prompt_is_the_beginning_of_the_conversation(pair: Any, settings: Settings) -> None:
    """Compared by tokens; otherwise SFT would train on a prompt that generation does not use."""
    _, processor = pair
    for question in [*QUESTIONS, "Wie groß? 数?", ""]:
        start = prompt_with_image(question)
        ids = processor.apply_chat_template(start, add_generation_prompt=True, tokenize=False)
        whole = processor.apply_chat_template([*start, *completion(35, settings.task)], tokenize=False)
        assert whole.startswith(ids)
        tokens = [processor.tokenizer(text).input_ids for text in (ids, whole)]
        assert tokens[1][: len(tokens[0])] == tokens[0]
        rest = processor.tokenizer.decode(tokens[1][len(tokens[0]) :])
        assert rest == "<answer> 35 </answer><end_of_utterance>\n"


def test_image_takes_one_token_per_patch(pair: Any, settings: Settings) -> None:
    model, processor = pair
    for size in (32, 50, 7):  # the processor resizes smaller and larger images
        batch = noise_batch(processor, 3, size)
        image = (batch["input_ids"] == model.config.image_token_id).sum(dim=1)
        assert image.tolist() == [16, 16, 16]
        assert batch["pixel_values"].shape == (3, 1, 3, 32, 32)
        with torch.no_grad():
            assert model(**batch).logits.isfinite().all()


def test_weights_depend_on_the_seed_alone(settings: Settings) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, processor = tiny(settings, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before), "the global generator must not change"
    torch.manual_seed(6)
    again = build_model(settings.model.tiny, processor, 1).state_dict()  # type: ignore[arg-type]
    other = build_model(settings.model.tiny, processor, 2).state_dict()  # type: ignore[arg-type]
    assert all(torch.equal(value, again[name]) for name, value in one.state_dict().items())
    assert any(not torch.equal(value, other[name]) for name, value in one.state_dict().items())


def test_default_model_has_one_to_four_million_parameters() -> None:
    settings = load_settings(ROOT / "params.yaml")
    model, _ = tiny(settings)
    assert 1e6 <= sum(p.numel() for p in model.parameters()) <= 4e6


def test_near_patches_have_similar_position_embeddings() -> None:
    positions = sinusoidal_positions(4, 32)
    assert positions.shape == (16, 32)
    assert positions.abs().max() <= 1
    assert len(torch.unique(positions, dim=0)) == 16
    grid = positions.reshape(4, 4, 32)
    near, far = (grid[0, 0] - grid[0, 1]).norm(), (grid[0, 0] - grid[0, 3]).norm()
    assert near < far
    # The row is in one half of the channels, the column in the other.
    assert torch.equal(grid[1, 0, :16], grid[1, 3, :16])
    assert torch.equal(grid[0, 2, 16:], grid[3, 2, 16:])


def test_auto_classes_load_the_model_with_the_same_logits(pair: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from components.shared.model.loading import save

    model, processor = pair
    save(model, processor, tmp_path / "model")
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    batch = noise_batch(AutoProcessor.from_pretrained(tmp_path / "model"), 3)
    ours = noise_batch(processor, 3)
    assert all(torch.equal(ours[name], batch[name]) for name in ours)
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, loaded(**batch).logits)
    assert {path.suffix for path in (tmp_path / "model").iterdir()} == {".safetensors", ".json", ".jinja"}
