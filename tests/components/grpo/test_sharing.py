"""The shared prefix on three architectures: log-probs, entropies, gradients, greedy answers and samples equal TRL's.

Idefics3 and LLaVA run through the whole trainer. The processor of Qwen2.5-VL needs torchvision, so its inputs (patches
and grids, which decide the positions of M-RoPE) are built here.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from scipy.stats import chisquare
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from trl.trainer.utils import add_fused_lm_head

from components.grpo.rollout_batch import RolloutBatch
from components.grpo.trainer import BatchRewardTrainer
from components.shared.model.prompts import prompt
from components.shared.model.shared_prefix import Slots, encode, sample, select
from components.shared.model.suppression import placeholder_ids
from tests.support.gauge_world import QUESTIONS
from tests.support.grpo_training import TEXT, make_trainer, save_llava, save_tiny, small_settings

INPUTS, COMPLETIONS, LENGTH = 3, 4, 5


def qwen(vocabulary: int, image_token: int) -> Any:
    torch.manual_seed(0)
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": 32,
        "patch_size": 4,
        "window_size": 16,
        "fullatt_block_indexes": [1],
    }
    text = {**TEXT, "vocab_size": vocabulary, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, image_token_id=image_token)
    model = Qwen2_5_VLForConditionalGeneration(config)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))  # as TRL's trainer does to its model
    return model


def qwen_batch(image_token: int) -> dict[str, torch.Tensor]:
    """Three inputs with pictures of three sizes and prompts of three lengths; completions of two lengths, four each."""
    generator = torch.Generator().manual_seed(1)
    grids = torch.tensor([[1, 4, 4], [1, 4, 8], [1, 8, 8]])
    rows, token_types = [], []
    for i, grid in enumerate(grids):
        count = int(grid.prod()) // 4
        before, after = (
            torch.randint(5, 60, (2 + i,), generator=generator),
            torch.randint(5, 60, (7,), generator=generator),
        )
        rows.append(torch.cat([before, torch.full((count,), image_token), after]))
        token_types.append(torch.cat([torch.zeros(2 + i), torch.ones(count), torch.zeros(7)]).long())
    longest = max(map(len, rows))

    def left(parts: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack([torch.cat([part.new_zeros(longest - len(part)), part]) for part in parts])

    owners = torch.arange(INPUTS).repeat_interleave(COMPLETIONS)
    mask = torch.ones(len(owners), LENGTH, dtype=torch.long)
    mask[::2, 3:] = 0
    patches = [torch.randn(int(grid.prod()), 3 * 2 * 4 * 4, generator=generator) for grid in grids]
    completions = torch.randint(5, 60, (len(owners), LENGTH), generator=generator)
    return {
        "owners": owners,
        "input_ids": torch.cat([left(rows)[owners], completions], dim=1),
        "attention_mask": torch.cat([left([torch.ones_like(row) for row in rows])[owners], mask], dim=1),
        "mm_token_type_ids": torch.cat([left(token_types)[owners], torch.zeros_like(completions)], dim=1),
        "pixel_values": torch.cat([patches[i] for i in owners.tolist()]),
        "image_grid_thw": grids[owners],
    }


def scored(trainer: BatchRewardTrainer, batch: dict[str, Any], sharing: bool) -> tuple[Any, Any, dict[str, Any]]:
    """Log-probs and entropies where there is a completion, and gradients of a weighted sum of the log-probs."""
    fields = {k: v for k, v in batch.items() if k not in ("owners", "input_ids", "attention_mask")}
    trainer.shares_prefix, trainer._rollout = sharing, RolloutBatch(batch["owners"])
    trainer.model.zero_grad()
    logps, entropies, _ = trainer._get_per_token_logps_and_entropies(
        trainer.model,
        batch["input_ids"],
        batch["attention_mask"],
        LENGTH,
        compute_entropy=True,
        num_images=[1] * len(batch["owners"]),
        **fields,
    )
    trainer._rollout = None
    assert entropies is not None
    where = batch["attention_mask"][:, -LENGTH:].bool()
    (logps * torch.linspace(-1, 1, len(logps))[:, None])[where].sum().backward()
    gradients = {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}
    return logps[where].detach(), entropies[where], gradients


def assert_equal(ours: tuple[Any, Any, dict[str, Any]], theirs: tuple[Any, Any, dict[str, Any]]) -> None:
    torch.testing.assert_close(ours[0], theirs[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(ours[1], theirs[1], atol=1e-5, rtol=0)
    assert ours[2].keys() == theirs[2].keys()
    largest = max(gradient.norm() for gradient in theirs[2].values())
    assert largest > 0
    for name, gradient in theirs[2].items():
        # Where the true gradient is 0 (a bias of the keys), both are rounding.
        assert (ours[2][name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-7 * largest, name


def lora(model: Any) -> Any:
    """Adapters on projections of the decoder; their second matrix is not zero, so that gradients reach both."""
    torch.manual_seed(5)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"]))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    return adapted


@pytest.fixture(scope="module")
def trainers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BatchRewardTrainer]:
    settings = small_settings()
    trainers = {}
    for name in ("idefics3", "llava"):
        folder = tmp_path_factory.mktemp(name)
        if name == "llava":
            save_llava(folder, settings)
        else:
            save_tiny(settings, folder)
        trainers[name] = make_trainer(folder, settings, tmp_path_factory.mktemp("out"))
    return trainers


def trainer_batch(trainer: BatchRewardTrainer) -> dict[str, Any]:
    """Completions of three inputs, prepared by the trainer from pictures of three sizes."""
    rng = np.random.default_rng(0)
    sizes = [(64, 64), (80, 48), (48, 96)]
    images = [Image.fromarray(rng.integers(0, 255, (h, w, 3), dtype=np.uint8)) for w, h in sizes]
    rows = [
        {"prompt": prompt(QUESTIONS[i]), "image": images[i], "target": 10.0 * i, "shot": "few"}
        for i in range(INPUTS)
        for _ in range(4)
    ]
    torch.manual_seed(0)
    trainer.model.train()
    output = trainer._generate_and_score_completions(rows)
    assert (output["prompt_mask"] == 0).any(), "the prompts should differ in length"
    generator = torch.Generator().manual_seed(2)
    model, processor = trainer.accelerator.unwrap_model(trainer.model), trainer.processing_class
    possible = torch.tensor(sorted(set(range(30)) - set(placeholder_ids(model, processor))))
    completions = possible[torch.randint(len(possible), (len(rows), LENGTH), generator=generator)]
    mask = torch.ones_like(completions)
    mask[::2, 3:] = 0
    pictures: dict[str, Any] = {
        k: output[k] for k in ("pixel_values", "pixel_attention_mask", "image_sizes") if k in output
    }
    return {
        "owners": output["rollout"].owners,
        "input_ids": torch.cat([output["prompt_ids"], completions], dim=1),
        "attention_mask": torch.cat([output["prompt_mask"], mask], dim=1),
        **pictures,
    }


@pytest.mark.parametrize("adapters", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("name", ["idefics3", "llava", "qwen2_5_vl"])
def test_scores_and_gradients_equal_trl(trainers: dict[str, BatchRewardTrainer], name: str, adapters: bool) -> None:
    trainer = trainers["idefics3" if name == "qwen2_5_vl" else name]
    assert trainer.unshared_reason is None
    batch = qwen_batch(image_token=3) if name == "qwen2_5_vl" else trainer_batch(trainer)
    own = trainer.model
    model = qwen(64, image_token=3) if name == "qwen2_5_vl" else own
    try:
        trainer.model = lora(model) if adapters else model
        trainer._set_signature_columns_if_needed()
        assert_equal(scored(trainer, batch, True), scored(trainer, batch, False))
    finally:
        if adapters and name != "qwen2_5_vl":
            trainer.model.unload()
            for weight in own.parameters():
                weight.requires_grad_(True)
        trainer.model, trainer.shares_prefix = own, True


def test_prompt_padding_changes_nothing_with_mrope() -> None:
    """A padded prompt has the positions that it has alone, so the test above compares equal sequences."""
    batch, model = qwen_batch(image_token=3), qwen(64, image_token=3).eval()
    prompt_ids = batch["input_ids"][::COMPLETIONS, :-LENGTH]
    mask = batch["attention_mask"][::COMPLETIONS, :-LENGTH]
    token_types = batch["mm_token_type_ids"][::COMPLETIONS, :-LENGTH]
    grids = batch["image_grid_thw"][::COMPLETIONS]
    counts = batch["image_grid_thw"].prod(-1).tolist()
    patches = torch.split(batch["pixel_values"], counts)[::COMPLETIONS]
    fields = {"mm_token_type_ids": token_types, "image_grid_thw": grids, "pixel_values": torch.cat(patches)}
    with torch.no_grad():
        whole = encode(model, prompt_ids, mask, fields)
        for i in range(INPUTS):
            real = mask[i].bool()
            one = {
                "mm_token_type_ids": token_types[i : i + 1, real],
                "image_grid_thw": grids[i : i + 1],
                "pixel_values": patches[i],
            }
            alone = encode(model, prompt_ids[i : i + 1, real], mask[i : i + 1, real], one)
            torch.testing.assert_close(whole.logits[i], alone.logits[0], atol=1e-5, rtol=0)
            assert (whole.next_position[:, i] == alone.next_position[:, 0]).all()
            assert (whole.next_position[:, i] < real.sum()).all(), "an image takes fewer positions than tokens"


@pytest.mark.parametrize("name", ["idefics3", "llava", "qwen2_5_vl"])
def test_greedy_answers_equal_generate(trainers: dict[str, BatchRewardTrainer], name: str) -> None:
    """Padded prompts of three lengths with two answers each, against `generate`, which TRL samples with."""
    if name == "qwen2_5_vl":
        batch, model = qwen_batch(image_token=3), qwen(64, image_token=3).eval()
    else:
        batch, model = trainer_batch(trainers[name]), trainers[name].model.eval()
    every = slice(None, None, COMPLETIONS)
    ids, mask = (batch[k][every, :-LENGTH] for k in ("input_ids", "attention_mask"))
    fields = {k: v for k, v in batch.items() if k not in ("owners", "input_ids", "attention_mask", "mm_token_type_ids")}
    fields = select(fields, torch.arange(0, len(batch["owners"]), COMPLETIONS))
    if name == "qwen2_5_vl":
        fields["mm_token_type_ids"] = batch["mm_token_type_ids"][every, :-LENGTH]
    generated = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=6, do_sample=False, eos_token_id=63, pad_token_id=0, **fields
    )
    slots = Slots(torch.arange(INPUTS).repeat(2), INPUTS)
    with torch.no_grad():
        # At this temperature, sampling always returns the most likely token.
        ours = sample(model, encode(model, ids, mask, fields), slots, 6, 1e-5, [63], 0)
    expected = generated[:, ids.shape[1] :].tolist()
    assert ours.tolist() == expected + expected


def test_samples_of_llava_follow_its_distribution(trainers: dict[str, BatchRewardTrainer]) -> None:
    trainer = trainers["llava"]
    batch = trainer_batch(trainer)
    ids, mask = batch["input_ids"][:1, :-LENGTH], batch["attention_mask"][:1, :-LENGTH]
    with torch.no_grad():
        prefix = encode(trainer.model.eval(), ids, mask, {"pixel_values": batch["pixel_values"][:1]})
        probabilities = torch.softmax(prefix.logits[0].double(), -1)
        torch.manual_seed(0)
        tokens = sample(trainer.model, prefix, Slots(torch.zeros(20_000, dtype=torch.long), 1), 1, 1.0, [], 0)
    counts = torch.bincount(tokens[:, 0], minlength=len(probabilities))
    assert counts[probabilities * 20_000 < 1e-3].sum() <= 1
    likely = probabilities * 20_000 > 5
    expected = probabilities[likely] / probabilities[likely].sum() * counts[likely].sum()
    assert chisquare(counts[likely].numpy(), expected.numpy()).pvalue > 1e-3


def test_the_reason_for_an_unshared_prefix_is_reported(tmp_path: Path) -> None:
    settings = small_settings()
    trainer = make_trainer(save_tiny(settings, tmp_path / "warm"), settings, tmp_path / "out")
    assert trainer.unshared_reason is None
    trainer.model.config.get_text_config()._attn_implementation = "flash_attention_2"
    assert "eager and sdpa take the block mask" in (trainer._unshared_reason() or "")
    trainer.model.config.model_type = "gemma3"
    assert "only idefics3, llava, qwen2_5_vl" in (trainer._unshared_reason() or "")
