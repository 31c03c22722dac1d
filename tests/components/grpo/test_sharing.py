"""The shared prefix on three architectures: log-probs, entropies, gradients, greedy answers and samples of TRL's path.

Idefics3 and LLaVA go the whole way through the trainer. Qwen2.5-VL has a processor that wants torchvision: its inputs
are built here, patches and grids, from which the positions of M-RoPE follow.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from scipy.stats import chisquare
from transformers import (
    CLIPImageProcessorPil,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from trl.trainer.utils import add_fused_lm_head

from components.grpo.shared_prefix import Slots, encode, sample, select
from components.grpo.trainer import BatchRewardTrainer
from components.settings import Settings
from components.shared.model.loading import save
from components.shared.model.prompts import prompt
from components.shared.model.suppression import placeholder_ids
from components.shared.model.tiny import build_model, build_processor
from tests.components.grpo.test_trainer import QUESTIONS, make_trainer, small_settings

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
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
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))  # as TRL's trainer does to the model that it gets
    return model


def qwen_batch(image_token: int) -> dict[str, torch.Tensor]:
    """Three inputs with pictures of three sizes and prompts of three lengths, four completions of two lengths each."""
    generator = torch.Generator().manual_seed(1)
    grids = torch.tensor([[1, 4, 4], [1, 4, 8], [1, 8, 8]])
    rows, kinds = [], []
    for i, grid in enumerate(grids):
        count = int(grid.prod()) // 4
        before, after = (
            torch.randint(5, 60, (2 + i,), generator=generator),
            torch.randint(5, 60, (7,), generator=generator),
        )
        rows.append(torch.cat([before, torch.full((count,), image_token), after]))
        kinds.append(torch.cat([torch.zeros(2 + i), torch.ones(count), torch.zeros(7)]).long())
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
        "mm_token_type_ids": torch.cat([left(kinds)[owners], torch.zeros_like(completions)], dim=1),
        "pixel_values": torch.cat([patches[i] for i in owners.tolist()]),
        "image_grid_thw": grids[owners],
    }


def llava(folder: Path, settings: Settings) -> None:
    """A tiny LLaVA with a processor, saved."""
    tokenizer = build_processor(settings.model.tiny, QUESTIONS).tokenizer
    image = tokenizer.convert_tokens_to_ids("<image>")
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template="{% for m in messages %}{{ m.role }}: {% for part in m.content %}"
        "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}{% endfor %}",
    )
    vision = {"model_type": "clip_vision_model", "image_size": 32, "patch_size": 8, "projection_dim": 32, **TEXT}
    config = LlavaConfig(
        vision_config=vision,
        text_config={"model_type": "llama", "vocab_size": len(tokenizer), **TEXT},
        image_token_id=image,
        vision_feature_layer=-1,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    save(model, processor, folder)


def scored(trainer: BatchRewardTrainer, batch: dict[str, Any], sharing: bool) -> tuple[Any, Any, dict[str, Any]]:
    """Log-probs and entropies where there is a completion, and gradients of a weighted sum of the log-probs."""
    fields = {k: v for k, v in batch.items() if k not in ("owners", "input_ids", "attention_mask")}
    trainer.sharing, trainer._owners = sharing, batch["owners"]
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
    trainer._owners = None
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
    """Adapters on every projection of the decoder, their second half not at zero, so that gradients reach both."""
    torch.manual_seed(5)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"]))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    return adapted


@pytest.fixture(scope="module")
def trainers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BatchRewardTrainer]:
    settings = small_settings()
    made = {}
    for name in ("idefics3", "llava"):
        folder = tmp_path_factory.mktemp(name)
        if name == "llava":
            llava(folder, settings)
        else:
            processor = build_processor(settings.model.tiny, QUESTIONS)
            save(build_model(settings.model.tiny, processor, seed=3), processor, folder)
        made[name] = make_trainer(folder, settings, tmp_path_factory.mktemp("out"))
    return made


def trainer_batch(trainer: BatchRewardTrainer) -> dict[str, Any]:
    """Completions of three inputs, as the trainer itself prepares them from pictures of three sizes."""
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
    made = trainer._generate_and_score_completions(rows)
    assert (made["prompt_mask"] == 0).any(), "the prompts should differ in length"
    generator = torch.Generator().manual_seed(2)
    model, processor = trainer.accelerator.unwrap_model(trainer.model), trainer.processing_class
    possible = torch.tensor(sorted(set(range(30)) - set(placeholder_ids(model, processor))))
    completions = possible[torch.randint(len(possible), (len(rows), LENGTH), generator=generator)]
    mask = torch.ones_like(completions)
    mask[::2, 3:] = 0
    pictures = {k: made[k] for k in ("pixel_values", "pixel_attention_mask", "image_sizes") if k in made}
    return {
        "owners": made["owners"],
        "input_ids": torch.cat([made["prompt_ids"], completions], dim=1),
        "attention_mask": torch.cat([made["prompt_mask"], mask], dim=1),
        **pictures,
    }


@pytest.mark.parametrize("adapters", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("name", ["idefics3", "llava", "qwen2_5_vl"])
def test_it_equals_trl(trainers: dict[str, BatchRewardTrainer], name: str, adapters: bool) -> None:
    trainer = trainers["idefics3" if name == "qwen2_5_vl" else name]
    assert trainer.unshared is None
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
        trainer.model, trainer.sharing = own, True


def test_padding_of_the_prompt_counts_for_nothing_with_mrope() -> None:
    """The positions that a padded prompt gets are those that it has alone: the test above compares like with like."""
    batch, model = qwen_batch(image_token=3), qwen(64, image_token=3).eval()
    prompt_ids = batch["input_ids"][::COMPLETIONS, :-LENGTH]
    mask = batch["attention_mask"][::COMPLETIONS, :-LENGTH]
    kinds = batch["mm_token_type_ids"][::COMPLETIONS, :-LENGTH]
    grids = batch["image_grid_thw"][::COMPLETIONS]
    counts = batch["image_grid_thw"].prod(-1).tolist()
    patches = torch.split(batch["pixel_values"], counts)[::COMPLETIONS]
    fields = {"mm_token_type_ids": kinds, "image_grid_thw": grids, "pixel_values": torch.cat(patches)}
    with torch.no_grad():
        whole = encode(model, prompt_ids, mask, fields)
        for i in range(INPUTS):
            real = mask[i].bool()
            one = {
                "mm_token_type_ids": kinds[i : i + 1, real],
                "image_grid_thw": grids[i : i + 1],
                "pixel_values": patches[i],
            }
            alone = encode(model, prompt_ids[i : i + 1, real], mask[i : i + 1, real], one)
            torch.testing.assert_close(whole.logits[i], alone.logits[0], atol=1e-5, rtol=0)
            assert (whole.after[:, i] == alone.after[:, 0]).all()
            assert (whole.after[:, i] < real.sum()).all(), "an image takes fewer positions than tokens"


@pytest.mark.parametrize("name", ["idefics3", "llava", "qwen2_5_vl"])
def test_greedy_answers_are_those_of_generate(trainers: dict[str, BatchRewardTrainer], name: str) -> None:
    """Prompts of three lengths, padded, two answers to each: generate's, which is what TRL samples with."""
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
        # So cold that the likeliest token is drawn, whatever the draw.
        ours = sample(model, encode(model, ids, mask, fields), slots, 6, 1e-5, [63], 0)
    expected = generated[:, ids.shape[1] :].tolist()
    assert ours.tolist() == expected + expected


def test_samples_of_llava_follow_its_distribution(trainers: dict[str, BatchRewardTrainer]) -> None:
    trainer = trainers["llava"]
    batch = trainer_batch(trainer)
    ids, mask = batch["input_ids"][:1, :-LENGTH], batch["attention_mask"][:1, :-LENGTH]
    with torch.no_grad():
        prefix = encode(trainer.model.eval(), ids, mask, {"pixel_values": batch["pixel_values"][:1]})
        chances = torch.softmax(prefix.logits[0].double(), -1)
        torch.manual_seed(0)
        drawn = sample(trainer.model, prefix, Slots(torch.zeros(20_000, dtype=torch.long), 1), 1, 1.0, [], 0)
    counts = torch.bincount(drawn[:, 0], minlength=len(chances))
    assert counts[chances * 20_000 < 1e-3].sum() <= 1
    likely = chances * 20_000 > 5
    expected = chances[likely] / chances[likely].sum() * counts[likely].sum()
    assert chisquare(counts[likely].numpy(), expected.numpy()).pvalue > 1e-3


def test_it_says_why_it_takes_trl_s_path(tmp_path: Path) -> None:
    settings = small_settings()
    processor = build_processor(settings.model.tiny, QUESTIONS)
    save(build_model(settings.model.tiny, processor, seed=3), processor, tmp_path / "warm")
    trainer = make_trainer(tmp_path / "warm", settings, tmp_path / "out")
    assert trainer.unshared is None
    trainer.model.config.get_text_config()._attn_implementation = "flash_attention_2"
    assert "eager and sdpa take the block mask" in (trainer._obstacle() or "")
    trainer.model.config.model_type = "gemma3"
    assert "only idefics3, llava, qwen2_5_vl" in (trainer._obstacle() or "")
