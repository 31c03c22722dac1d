"""A few dozen small gauge images as row shards, and settings that train a tiny model on them in a second."""

import copy
import csv
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from components.ingest.sources.gauges import draw_scenes, write_scenes
from components.settings import Settings, load_settings
from tests.support.raw_folder import PUBLISHED

ROOT = Path(__file__).parents[2]

# Reading -> number of training images; with many 6 and few 3 every shot group has some.
TRAIN = {10: 2, 30: 8, 35: 10, 40: 8, 60: 4, 90: 1}
SECTIONS: dict[str, dict[str, Any]] = {
    "task": {"many": 6, "few": 3},
    "ingest": {"image_size": 32},
    "model": {
        "tiny": {
            "image_size": 32, "patch_size": 8, "pixel_shuffle": 1, "vision_width": 32, "vision_layers": 2,
            "text_width": 32, "text_layers": 2, "heads": 2,
        }
    },
    "sft": {
        "max_steps": 6, "batch_size": 8, "warmup_steps": 2, "eval_every": 3, "eval_rows": 10, "patience": 3,
        "no_skill": "warning",
    },
    "grpo": {
        **PUBLISHED, "steps": 4, "prompts": 4, "generations": 4, "warmup_steps": 1, "checkpoint_every": 2,
        "eval_rows": 10, "no_signal": "warning",
    },
}  # fmt: skip
LORA = {"r": 4, "alpha": 8, "dropout": 0.1, "targets": "all-linear"}


def write_params(path: Path, **sections: Mapping[str, Any]) -> Settings:
    """Writes the repository's params.yaml with small sizes and the given changes by section; returns the settings."""
    raw = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for changes in (copy.deepcopy(SECTIONS), sections):
        for section, values in changes.items():
            raw[section] |= values
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return load_settings(path)


def write_data(folder: Path, train: Mapping[int, int] = TRAIN) -> None:
    """Writes `FOLDER/scenes.csv`."""
    folder.mkdir(parents=True)
    (folder / "scenes.csv").write_text(scenes_of(train), encoding="utf-8")


def scenes_of(train: Mapping[int, int]) -> str:
    """The content of scenes.csv."""
    counts = np.zeros(101, np.int64)
    for reading, count in train.items():
        counts[reading] = count
    return write_scenes(draw_scenes(1, counts, val=1, test=1))


def ingested(folder: Path, train: Mapping[int, int] = TRAIN) -> Path:
    """Runs the ingest step and returns the folder of the row shards."""
    from components.ingest.step import run

    write_data(folder / "data", train)
    run(write_params(folder / "params.yaml"), Curves(), data=folder / "data", out=folder / "ingest")  # type: ignore[arg-type]
    return folder / "ingest"


def curve(out: Path) -> dict[int, dict[str, float]]:
    """Reads a training step's curve file: metrics by step, without empty cells."""
    with open(out / "curve.csv", encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    return {int(line["step"]): {k: float(v) for k, v in line.items() if k != "step" and v} for line in lines}


class Curves:
    """A tracker that stores what a step logs, and can interrupt the step at a point of its curve as Ctrl-C does."""

    def __init__(self, stop_after: int | None = None) -> None:
        """Interrupts at the first entry after step `stop_after`."""
        self.points: list[tuple[int, dict[str, float]]] = []
        self.times: list[float] = []
        self._stop_after = stop_after

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Stores one entry."""
        if self._stop_after is not None and step > self._stop_after:
            raise KeyboardInterrupt
        self.points.append((step, dict(metrics)))
        self.times.append(time.monotonic())

    def steps(self, name: str) -> list[int]:
        """Steps at which the metric was logged."""
        return [step for step, metrics in self.points if name in metrics]


QUESTIONS = ["What does the gauge read?", "How many strokes does this character have, all told?", "Age?"]


def tiny(settings: Settings, seed: int = 3) -> tuple[Any, Any]:
    """Returns an untrained model and its processor, whose tokenizer was trained on `QUESTIONS`."""
    from components.shared.model.tiny import build_model, build_processor

    assert settings.model.tiny is not None
    processor = build_processor(settings.model.tiny, QUESTIONS)
    return build_model(settings.model.tiny, processor, seed), processor


def noise_batch(processor: Any, count: int, size: int = 32) -> Any:
    """Returns model inputs for noise images with questions of different lengths."""
    from PIL import Image

    from components.shared.model.prompts import prompt_with_image

    texts = [
        processor.apply_chat_template(
            prompt_with_image(QUESTIONS[k % len(QUESTIONS)]), add_generation_prompt=True, tokenize=False
        )
        for k in range(count)
    ]
    rng = np.random.default_rng(0)
    images = [[Image.fromarray(rng.integers(0, 255, (size, size, 3), dtype=np.uint8))] for _ in range(count)]
    return processor(text=texts, images=images, padding=True, return_tensors="pt")
