"""The training step: shared prefix against TRL's own path, rewards over whole groups, suppressed placeholders."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from components.grpo.concordance import slot_concordance
from components.grpo.trainer import BatchRewardTrainer, training_arguments
from components.settings import Settings, load_settings
from components.shared.model.loading import load, save
from components.shared.model.prompts import prompt
from components.shared.model.suppression import placeholder_ids, suppress_placeholders
from components.shared.model.tiny import build_model, build_processor

QUESTIONS = ["What does the gauge read?", "How many strokes does this character have, all told?", "Age?"]


def small_settings(**grpo: Any) -> Settings:
    settings = load_settings(Path("params.yaml"))
    tiny = settings.model.tiny.model_copy(
        update={"vision_width": 32, "vision_layers": 2, "text_width": 32, "text_layers": 2, "heads": 2}
    )
    step = {"prompts": 6, "generations": 4, "steps": 2, "checkpoint_every": 2, **grpo}
    return settings.model_copy(
        update={
            "model": settings.model.model_copy(update={"tiny": tiny}),
            "grpo": settings.grpo.model_copy(update=step),
        }
    )


def pictures(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)) for _ in range(count)]


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = small_settings()
    folder = tmp_path_factory.mktemp("warm")
    processor = build_processor(settings.model.tiny, QUESTIONS)
    save(build_model(settings.model.tiny, processor, seed=3), processor, folder)
    return folder


def make_trainer(warm: Path, settings: Settings, folder: Path) -> BatchRewardTrainer:
    from datasets import Dataset

    model, processor = load(warm, settings.model)
    images = pictures(settings.grpo.prompts * settings.grpo.steps)

    def show(batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        ks = batch["position"]
        return {
            "prompt": [prompt(QUESTIONS[k % 3]) for k in ks],
            "image": [images[k] for k in ks],
            "target": [float(7 * k % 100) for k in ks],
            "shot": ["many" if k % 2 else "few" for k in ks],
        }

    rows = Dataset.from_dict({"position": range(len(images))}).with_transform(show)
    return BatchRewardTrainer(
        model=model,
        args=training_arguments(settings.grpo, settings, folder, 1),
        train_dataset=rows,
        processing_class=processor,
        settings=settings,
    )


def step_batch(trainer: BatchRewardTrainer) -> dict[str, Any]:
    """What the first training step works on."""
    torch.manual_seed(0)
    trainer.model.train()
    return trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))


def loss_and_gradients(trainer: BatchRewardTrainer, batch: dict[str, Any]) -> tuple[float, dict[str, torch.Tensor]]:
    trainer.model.zero_grad()
    trainer.current_gradient_accumulation_steps = 1
    loss = trainer._compute_loss(trainer.model, batch)
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}


def test_shared_prefix_equals_trl(warm: Path, tmp_path: Path) -> None:
    """Log-probs and entropies to 1e-5, gradients to 1e-4 relative, with prompts of three lengths in a batch."""
    trainer = make_trainer(warm, small_settings(), tmp_path)
    assert trainer.sharing
    batch = step_batch(trainer)
    assert (batch["prompt_mask"] == 0).any(), "the prompts should differ in length"
    # Advantages that are not all alike, whatever the untrained model answered.
    batch["advantages"] = torch.linspace(-1, 1, len(batch["advantages"]))
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    fields = {name: batch[name] for name in ("pixel_values", "pixel_attention_mask", "num_images")}
    length = batch["completion_ids"].shape[1]
    found = {}
    for sharing in (True, False):
        trainer.sharing = sharing
        trainer._owners = batch["owners"]
        logps, entropies, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model, ids, mask, length, compute_entropy=True, **fields
        )
        where = batch["completion_mask"].bool()
        found[sharing] = (logps[where], entropies[where], *loss_and_gradients(trainer, batch))
    ours, theirs = found[True], found[False]
    torch.testing.assert_close(ours[0], theirs[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(ours[1], theirs[1], atol=1e-5, rtol=0)
    assert ours[2] == pytest.approx(theirs[2], abs=1e-5)
    assert ours[3].keys() == theirs[3].keys()
    for name, gradient in theirs[3].items():
        assert (ours[3][name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-8, name


def test_the_prefix_that_was_sampled_on_is_that_of_the_policy_pass(warm: Path, tmp_path: Path) -> None:
    """The loss and its gradients are the same as with a prefix encoded anew; and it is used for one pass alone."""
    trainer = make_trainer(warm, small_settings(), tmp_path)
    batch = step_batch(trainer)
    batch["advantages"] = torch.linspace(-1, 1, len(batch["advantages"]))
    assert trainer._kept is not None
    loss, gradients = loss_and_gradients(trainer, batch)
    assert trainer._kept is None
    anew, gradients_anew = loss_and_gradients(trainer, batch)
    assert loss == pytest.approx(anew, abs=1e-7)
    assert gradients.keys() == gradients_anew.keys()
    for name, gradient in gradients_anew.items():
        torch.testing.assert_close(gradients[name], gradient, atol=1e-7, rtol=1e-5)


def test_no_prefix_is_kept_over_a_change_of_the_weights(warm: Path, tmp_path: Path) -> None:
    trainer = make_trainer(warm, small_settings(accumulation=3), tmp_path)
    step_batch(trainer)
    assert trainer._kept is None


def test_owners_follow_the_pictures(warm: Path, tmp_path: Path) -> None:
    batch = step_batch(make_trainer(warm, small_settings(), tmp_path))
    assert batch["owners"].tolist() == [i for i in range(6) for _ in range(4)]


def test_micro_batches_keep_groups_whole(warm: Path, tmp_path: Path) -> None:
    trainer = make_trainer(warm, small_settings(accumulation=3), tmp_path)
    first = step_batch(trainer)
    parts = [first, *trainer._buffered_inputs[1:]]
    assert [part["owners"].tolist() for part in parts] == [[2 * i] * 4 + [2 * i + 1] * 4 for i in range(3)]


def test_rewards_are_those_of_the_whole_batch(warm: Path, tmp_path: Path) -> None:
    settings = small_settings()
    trainer = make_trainer(warm, settings, tmp_path)
    answers = [[float(10 * i + g) if g else None for g in range(4)] for i in range(6)]
    texts = [f"<answer> {a:.0f} </answer>" if a is not None else "eleven" for group in answers for a in group]
    inputs = [{"target": 9.0 * i, "shot": "few"} for i in range(6) for _ in range(4)]
    rewards = trainer._calculate_rewards(inputs, None, [[{"content": text}] for text in texts], None)
    values = np.array([[np.nan if a is None else a for a in group] for group in answers])
    np.testing.assert_allclose(rewards[:, 0].reshape(6, 4), slot_concordance(values, 9.0 * np.arange(6)), rtol=1e-6)
    assert rewards[:, 1].reshape(6, 4).tolist() == [[0.0, 0.5, 0.5, 0.5]] * 6


def test_placeholders_are_never_sampled(warm: Path, tmp_path: Path) -> None:
    """Even a model that wants nothing else; and log-probs know of it."""
    settings = small_settings()
    model, processor = load(warm, settings.model)
    ids = placeholder_ids(model, processor)
    vocabulary = processor.tokenizer.get_vocab()
    assert {vocabulary[t] for t in ("<image>", "<fake_token_around_image>", "<global-img>", "<pad>")} <= set(ids)
    assert processor.tokenizer.eos_token_id not in ids
    head = model.get_output_embeddings()
    logits = head(torch.randn(5, 32))
    assert torch.softmax(logits, -1)[:, ids].max() == 0
    assert "bias" not in "".join(name for name in model.state_dict() if "lm_head" in name)
    assert suppress_placeholders(model, processor) == ids


def test_a_saved_model_loads_with_the_auto_classes(warm: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model, processor = AutoModelForImageTextToText.from_pretrained(warm), AutoProcessor.from_pretrained(warm)
    ours, _ = load(warm, small_settings().model)
    for name, value in model.state_dict().items():
        assert torch.equal(value, ours.state_dict()[name]), name
    assert (
        processor.tokenizer("35").input_ids == processor.tokenizer("3").input_ids + processor.tokenizer("5").input_ids
    )
    assert not list(warm.glob("*.bin"))
