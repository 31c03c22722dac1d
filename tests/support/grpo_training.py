"""GRPO trainers with tiny models on noise pictures, and single training steps of them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import (
    CLIPImageProcessorPil,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Trainer,
    TrainerCallback,
)

from components.grpo.exact_trainer import ExactTrainer, exact_arguments
from components.grpo.trainer import BatchRewardTrainer, training_arguments
from components.settings import Lora, Settings, load_settings
from components.shared.model.loading import load, save, weights_dtype
from components.shared.model.lora import trainable
from components.shared.model.prompts import prompt
from components.shared.model.tiny import build_model, build_processor
from components.shared.training.validation import TaskNumbers
from tests.support.gauge_world import QUESTIONS, ROOT
from tests.support.raw_folder import PUBLISHED

ADAPTER = Lora(r=4, alpha=8, dropout=0.0, targets="all-linear")
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def small_settings(**grpo: Any) -> Settings:
    """The settings of params.yaml for CCC-GRPO as published with a tiny model and few inputs, and with changes of the
    section grpo."""
    settings = load_settings(ROOT / "params.yaml")
    assert settings.model.tiny is not None
    tiny = settings.model.tiny.model_copy(
        update={"vision_width": 32, "vision_layers": 2, "text_width": 32, "text_layers": 2, "heads": 2}
    )
    step = PUBLISHED | {"prompts": 6, "generations": 4, "steps": 2, "checkpoint_every": 2, **grpo}
    return settings.model_copy(
        update={
            "model": settings.model.model_copy(update={"tiny": tiny}),
            "grpo": settings.grpo.model_copy(update=step),
        }
    )


def noise_pictures(count: int) -> list[Image.Image]:
    """Pictures of 64 x 64 pixels."""
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)) for _ in range(count)]


def save_tiny(settings: Settings, folder: Path) -> Path:
    """Saves the tiny model of the settings with random weights, and its processor."""
    assert settings.model.tiny is not None
    processor = build_processor(settings.model.tiny, QUESTIONS)
    save(build_model(settings.model.tiny, processor, seed=3), processor, folder)
    return folder


def save_llava(folder: Path, settings: Settings) -> Path:
    """Saves a tiny LLaVA with random weights, and its processor."""
    assert settings.model.tiny is not None
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
    return folder


class ScriptedAnswers(BatchRewardTrainer):
    """The trainer with given answers in place of sampled ones.

    Attributes:
        answers: of the rollout's rows.
    """

    answers: list[str]

    def _generate_single_turn(self, prompt_ids: Any, *_: Any, **__: Any) -> Any:
        ids = self._tokenizer(self.answers, add_special_tokens=False)["input_ids"]
        return [[*row, self._tokenizer.eos_token_id][: self.max_completion_length] for row in ids], None


def noise_rows(count: int) -> Any:
    """Noise pictures with questions of three lengths, as a dataset for the trainers."""
    from datasets import Dataset

    images = noise_pictures(count)

    def show(batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        ks = batch["position"]
        return {
            "prompt": [prompt(QUESTIONS[k % 3]) for k in ks],
            "question": [QUESTIONS[k % 3] for k in ks],
            "image": [images[k] for k in ks],
            "target": [float(7 * k % 100) for k in ks],
            "shot": ["many" if k % 2 else "few" for k in ks],
        }

    return Dataset.from_dict({"position": range(count)}).with_transform(show)


def make_trainer(
    warm: Path,
    settings: Settings,
    folder: Path,
    kind: type[BatchRewardTrainer] = BatchRewardTrainer,
    world_size: int = 1,
) -> BatchRewardTrainer:
    """Returns a trainer of the model in `warm` on noise pictures, with an adapter if the settings have one."""
    model, processor = load(warm, settings.model, weights=weights_dtype(settings.model))
    return kind(
        model=trainable(model, settings.model),
        args=training_arguments(settings.grpo, settings, folder, world_size),
        train_dataset=noise_rows(settings.grpo.prompts * settings.grpo.steps),
        processing_class=processor,
        settings=settings,
    )


def make_exact_trainer(
    warm: Path, settings: Settings, folder: Path, world_size: int = 1, kind: type[ExactTrainer] = ExactTrainer
) -> ExactTrainer:
    """The same for the exact estimators, with adapters if the settings have them; keeps no best checkpoint."""
    model, processor = load(warm, settings.model, weights=weights_dtype(settings.model))
    torch.manual_seed(settings.grpo.seed)  # for the adapters
    return kind(
        model=trainable(model, settings.model),
        args=exact_arguments(settings.grpo, settings, folder, world_size),
        train_dataset=noise_rows(settings.grpo.prompts * settings.grpo.steps),
        processing_class=processor,
        settings=settings,
        numbers=TaskNumbers.of(processor, settings.task, np.arange(0, 100, 3)),
    )


class GradientRecorder(TrainerCallback):
    """Keeps the gradients of each optimizer step by parameter name, in `steps`; they are not clipped."""

    def __init__(self, trainer: Trainer) -> None:
        """Adds itself to the trainer."""
        self.steps: list[dict[str, torch.Tensor]] = []
        trainer.args.max_grad_norm = 0
        trainer.add_callback(self)

    def on_pre_optimizer_step(self, *_: Any, model: Any, **__: Any) -> None:
        """Stores a copy."""
        named = model.named_parameters()
        self.steps.append({name: value.grad.clone() for name, value in named if value.grad is not None})


def rollout_rows(targets: list[float], generations: int) -> list[dict[str, Any]]:
    """A batch of the data loader: for each target, `generations` rows that share one picture."""
    images = noise_pictures(len(targets))
    return [
        {"prompt": prompt(QUESTIONS[0]), "image": image, "target": target, "shot": "few"}
        for image, target in zip(images, targets, strict=True)
        for _ in range(generations)
    ]


def step_batch(trainer: BatchRewardTrainer) -> dict[str, Any]:
    """Returns the prepared inputs of the first training step."""
    torch.manual_seed(0)
    trainer.model.train()
    return trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))


def loss_and_gradients(trainer: BatchRewardTrainer, batch: dict[str, Any]) -> tuple[float, dict[str, torch.Tensor]]:
    """Runs the policy pass; gradients by parameter name."""
    trainer.model.zero_grad()
    trainer.current_gradient_accumulation_steps = 1
    loss = trainer._compute_loss(trainer.model, batch)
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}


def assert_near(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float = 1e-5) -> None:
    """Asserts that gradients are equal up to rounding, judged by each one's norm, or by the largest if it is tiny."""
    largest = max(gradient.norm() for gradient in expected.values())
    assert largest > 0
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= tolerance * max(gradient.norm(), largest * 1e-2), name
