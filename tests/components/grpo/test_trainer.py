"""The training step: shared prefix against TRL's own path, rewards over whole groups, suppressed placeholders."""

from pathlib import Path

import numpy as np
import pytest
import torch

from components.grpo.concordance import slot_concordance
from components.grpo.rollout_batch import RolloutBatch
from components.shared.model.loading import load
from components.shared.model.suppression import placeholder_ids, suppress_placeholders
from tests.support.grpo_training import loss_and_gradients, make_trainer, save_tiny, small_settings, step_batch


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(small_settings(), tmp_path_factory.mktemp("warm"))


def test_shared_prefix_equals_trl(warm: Path, tmp_path: Path) -> None:
    """Log-probs and entropies to 1e-5, gradients to 1e-4 relative, with prompts of three lengths in a batch."""
    trainer = make_trainer(warm, small_settings(), tmp_path)
    assert trainer.shares_prefix
    batch = step_batch(trainer)
    assert (batch["prompt_mask"] == 0).any(), "the prompts should differ in length"
    # Advantages that differ, whatever the untrained model answered.
    batch["advantages"] = torch.linspace(-1, 1, len(batch["advantages"]))
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    fields = {name: batch[name] for name in ("pixel_values", "pixel_attention_mask", "num_images")}
    length = batch["completion_ids"].shape[1]
    results = {}
    for shares in (True, False):
        trainer.shares_prefix = shares
        trainer._rollout = RolloutBatch(batch["rollout"].owners)
        logps, entropies, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model, ids, mask, length, compute_entropy=True, **fields
        )
        assert entropies is not None
        where = batch["completion_mask"].bool()
        results[shares] = (logps[where], entropies[where], *loss_and_gradients(trainer, batch))
    ours, theirs = results[True], results[False]
    torch.testing.assert_close(ours[0], theirs[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(ours[1], theirs[1], atol=1e-5, rtol=0)
    assert ours[2] == pytest.approx(theirs[2], abs=1e-5)
    assert ours[3].keys() == theirs[3].keys()
    for name, gradient in theirs[3].items():
        assert (ours[3][name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-8, name


def test_the_policy_pass_reuses_the_prefix_of_sampling_once(warm: Path, tmp_path: Path) -> None:
    """Loss and gradients equal those with a prefix that is encoded again, as in a second pass on the same batch."""
    trainer = make_trainer(warm, small_settings(), tmp_path)
    batch = step_batch(trainer)
    batch["advantages"] = torch.linspace(-1, 1, len(batch["advantages"]))
    assert batch["rollout"].prefix is not None
    loss, gradients = loss_and_gradients(trainer, batch)
    assert batch["rollout"].prefix is None
    second_loss, second_gradients = loss_and_gradients(trainer, batch)
    assert loss == pytest.approx(second_loss, abs=1e-7)
    assert gradients.keys() == second_gradients.keys()
    for name, gradient in second_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, atol=1e-7, rtol=1e-5)


def test_no_prefix_is_kept_for_several_micro_batches(warm: Path, tmp_path: Path) -> None:
    trainer = make_trainer(warm, small_settings(accumulation=3), tmp_path)
    step_batch(trainer)
    assert not trainer._keeps_prefix()
    assert [part["rollout"].prefix for part in trainer._buffered_inputs] == [None] * 3


def test_owners_follow_the_pictures(warm: Path, tmp_path: Path) -> None:
    batch = step_batch(make_trainer(warm, small_settings(), tmp_path))
    assert batch["rollout"].owners.tolist() == [i for i in range(6) for _ in range(4)]


def test_micro_batches_keep_groups_together(warm: Path, tmp_path: Path) -> None:
    trainer = make_trainer(warm, small_settings(accumulation=3), tmp_path)
    first = step_batch(trainer)
    parts = [first, *trainer._buffered_inputs[1:]]
    assert [part["rollout"].owners.tolist() for part in parts] == [[2 * i] * 4 + [2 * i + 1] * 4 for i in range(3)]


def test_the_processor_is_wrapped_only_during_a_rollout(warm: Path, tmp_path: Path) -> None:
    """Outside of it, TRL and transformers get the processor itself, which they check by type and save."""
    trainer = make_trainer(warm, small_settings(), tmp_path)
    processor = trainer.processing_class
    step_batch(trainer)
    assert trainer._rollout is None
    assert trainer.processing_class is processor


def test_rewards_compare_the_whole_batch(warm: Path, tmp_path: Path) -> None:
    trainer = make_trainer(warm, small_settings(), tmp_path)
    answers = [[float(10 * i + g) if g else None for g in range(4)] for i in range(6)]
    texts = [f"<answer> {a:.0f} </answer>" if a is not None else "eleven" for group in answers for a in group]
    inputs = [{"target": 9.0 * i, "shot": "few"} for i in range(6) for _ in range(4)]
    rewards = trainer._calculate_rewards(inputs, [None] * 24, [[{"content": text}] for text in texts], None)
    values = np.array([[np.nan if a is None else a for a in group] for group in answers])
    np.testing.assert_allclose(rewards[:, 0].reshape(6, 4), slot_concordance(values, 9.0 * np.arange(6)), rtol=1e-6)
    assert rewards[:, 1].reshape(6, 4).tolist() == [[0.0, 0.5, 0.5, 0.5]] * 6


def test_placeholders_are_never_sampled(warm: Path, tmp_path: Path) -> None:
    """Whatever the hidden states, and the log-probs agree."""
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
