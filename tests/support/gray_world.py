"""A task that a tiny model learns in seconds: plain gray images, labelled with their brightness."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image

from components.settings import Settings, load_settings
from components.shared.model.loading import base_model, save
from components.shared.model.prompts import prompt_with_image
from components.shared.model.validation_pass import save_validation, warm_start_answers
from components.shared.rows.rows import Row, ShardWriter
from components.shared.scoring.answers import format_answer

ROOT = Path(__file__).parents[2]
QUESTION = "How bright?"

# Label -> number of training images; with many 10 and few 5 every shot group has at least one label.
TRAIN = {20: 14, 40: 12, 60: 7, 80: 3}
VAL_IMAGES_PER_LABEL = 4
TEST_IMAGES_PER_LABEL = 6
SECTIONS = {
    "task": {"question": QUESTION, "unit": "", "low": 0, "high": 100, "many": 10, "few": 5},
    "model": {
        "tiny": {
            "image_size": 16, "patch_size": 4, "pixel_shuffle": 2, "vision_width": 32, "vision_layers": 1,
            "text_width": 32, "text_layers": 1, "heads": 2,
        }
    },
    "evaluate": {"batch_size": 5, "bootstrap": 100},
    "register": {"bootstrap": 200, "max_unparseable": 0.2, "tolerance_all": 0.5, "tolerance_many": 100},
}  # fmt: skip


@dataclass(frozen=True)
class GrayWorld:
    """Paths of the row shards, of a model never trained on the rarest label (sft), and of one that was (grpo)."""

    settings: Settings
    params: Path
    ingest: Path
    sft: Path
    grpo: Path


def make(folder: Path) -> GrayWorld:
    """Writes the rows and trains both models, in about ten seconds."""
    raw = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for section, values in SECTIONS.items():
        raw[section] |= values
    params = folder / "params.yaml"
    params.write_text(yaml.safe_dump(raw), encoding="utf-8")
    settings = load_settings(params)
    ingest = write_rows(folder / "ingest")
    torch.set_num_threads(1)
    model, processor = base_model(settings, ingest)
    train(model, processor, settings, 16, [20, 40, 60])
    save(model, processor, folder / "sft")
    save_validation(folder / "sft", model, processor, settings.task, ingest, 8)
    train(model, processor, settings, 40, list(TRAIN))
    save(model, processor, folder / "grpo")
    save_validation(
        folder / "grpo", model, processor, settings.task, ingest, 8, warm_start_answers(folder / "sft", ingest)
    )
    (folder / "sft" / "metrics.json").write_text('{"steps": 16}')
    (folder / "grpo" / "metrics.json").write_text('{"method": "CCC-GRPO", "reward/ccc": 0.9}')
    return GrayWorld(settings, params, ingest, folder / "sft", folder / "grpo")


def write_rows(ingest: Path) -> Path:
    """Writes the row shards of all splits to a new folder, and returns it."""
    ingest.mkdir()
    splits = {
        "train": TRAIN,
        "val": dict.fromkeys(TRAIN, VAL_IMAGES_PER_LABEL),
        "test": dict.fromkeys(TRAIN, TEST_IMAGES_PER_LABEL),
    }
    for split, counts in splits.items():
        with ShardWriter(ingest, split, 1) as shard:
            labels = [label for label, count in counts.items() for _ in range(count)]
            for k, label in enumerate(labels):
                seed = {"train": 0, "val": 2000, "test": 1000}[split] + k
                shard.add(Row(f"{split}-{k:03d}", gray(label, seed), float(label), QUESTION, "made"))
    return ingest


def gray(label: float, seed: int) -> bytes:
    """Returns a 16 x 16 PNG of brightness 2.55 * label with some noise."""
    pixels = 2.55 * label + np.random.default_rng(seed).normal(0, 4, (16, 16, 3))
    out = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


def train(model: torch.nn.Module, processor: object, settings: Settings, steps: int, labels: list[int]) -> None:
    """Trains the model on images of the given labels."""
    torch.manual_seed(0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    prompt = processor.apply_chat_template(prompt_with_image(QUESTION), add_generation_prompt=True, tokenize=False)  # type: ignore[attr-defined]
    model.train()
    for step in range(steps):
        targets = labels * 4
        images = [[Image.open(io.BytesIO(gray(label, 5000 + 16 * step + k)))] for k, label in enumerate(targets)]
        texts = [f"{prompt}{format_answer(label, settings.task.resolution)}<end_of_utterance>" for label in targets]
        batch = processor(text=texts, images=images, padding=True, return_tensors="pt")  # type: ignore[operator]
        token_labels = batch["input_ids"].clone()
        token_labels[:, :-6] = -100
        loss = model(**batch, labels=token_labels).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
