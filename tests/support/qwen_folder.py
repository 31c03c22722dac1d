"""Writes a Qwen2.5-VL model folder like the hub's: config with the real dimensions and processor, but no weights."""

import json
from pathlib import Path
from typing import Any

from transformers import Qwen2_5_VLConfig, Qwen2VLImageProcessorPil

from components.shared.model.tiny import build_tokenizer

SPECIAL_TOKENS = ["<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for part in m.content %}{% if part.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# The published configs (Bai et al. 2025, arXiv 2502.13923, table 1). The vision towers differ in their last projection.
TEXT: dict[str, dict[str, Any]] = {
    "3b": {
        "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
        "num_key_value_heads": 2, "vocab_size": 151936,
    },
    "7b": {
        "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "vocab_size": 152064,
    },
}  # fmt: skip
VISION = {
    "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "patch_size": 14,
    "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31],
}  # fmt: skip
# Parameters of the published checkpoints in billions, to two decimals.
BILLIONS = {"3b": 3.75, "7b": 8.29}


def write_qwen(folder: Path, size: str, layers: int | None = None) -> Path:
    """Writes the folder of the `3b` or `7b` model; `layers` limits the layers of decoder and vision tower."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(["How old?"])
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL_TOKENS})
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    rotary = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    config = Qwen2_5_VLConfig(
        text_config={**TEXT[size], "rope_parameters": rotary, **({"num_hidden_layers": layers} if layers else {})},
        vision_config={
            **VISION,
            "out_hidden_size": TEXT[size]["hidden_size"],
            **({"depth": layers, "fullatt_block_indexes": [layers - 1]} if layers else {}),
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        tie_word_embeddings=size == "3b",
    )
    config.save_pretrained(folder)
    images = Qwen2VLImageProcessorPil(patch_size=14, merge_size=2).to_dict()
    images |= {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(images), encoding="utf-8")
    return folder
