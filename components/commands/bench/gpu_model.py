"""Qwen2.5-VL built from its config, with random weights, and a stand-in for its processor.

The stand-in tokenizer is small, but cuts what matters here as Qwen's does: each digit is a token, a tag is three. So no
file of the published model is needed.
"""

from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import AddedToken
from transformers import (
    BatchFeature,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
)

from components.commands.bench.tags import split_tags
from components.shared.model.device import random_state_kept
from components.shared.model.loading import DTYPES
from components.shared.model.precision import compute_in
from components.shared.model.suppression import suppress_placeholders
from components.shared.model.tiny import PAD, build_tokenizer

END, IMAGE, VIDEO = "<|im_end|>", "<|image_pad|>", "<|video_pad|>"
SPECIAL = (END, "<|vision_start|>", "<|vision_end|>", IMAGE, VIDEO)
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Dimensions:
    """Size of a Qwen2.5-VL.

    Attributes:
        title: in tables.
        mrope: rotary dimensions of time, row and column: half of a head's together.
        full: vision layers whose attention is not limited to a window.
        side: of the images in pixels.
    """

    title: str
    width: int
    inner: int
    layers: int
    heads: int
    groups: int
    vocabulary: int
    mrope: tuple[int, int, int]
    vision_width: int
    vision_inner: int
    vision_layers: int
    vision_heads: int
    full: tuple[int, ...]
    side: int


# Bai et al. 2025, arXiv 2502.13923, table 1, and the published config.
QWEN_3B = Dimensions(
    "Qwen2.5-VL-3B", 2048, 11008, 36, 16, 2, 151936, (16, 24, 24), 1280, 3420, 32, 16, (7, 15, 23, 31), 448
)
TINY = Dimensions("a tiny Qwen2.5-VL", 64, 128, 2, 4, 2, 512, (2, 3, 3), 32, 64, 2, 2, (1,), 112)


def build_qwen(size: Dimensions, processor: "StandInProcessor", dtype: str, device: torch.device) -> Any:
    """The model with random weights that depend on nothing but its size, on the device from the start."""
    ids = {token: processor.tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    config = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": size.width,
            "intermediate_size": size.inner,
            "num_hidden_layers": size.layers,
            "num_attention_heads": size.heads,
            "num_key_value_heads": size.groups,
            "vocab_size": size.vocabulary,
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 128000,
            "bos_token_id": None,
            "eos_token_id": ids[END],
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": list(size.mrope)},
        },
        vision_config={
            "depth": size.vision_layers,
            "hidden_size": size.vision_width,
            "intermediate_size": size.vision_inner,
            "num_heads": size.vision_heads,
            "out_hidden_size": size.width,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": list(size.full),
        },
        image_token_id=ids[IMAGE],
        video_token_id=ids[VIDEO],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    with random_state_kept(device), device:
        torch.manual_seed(0)
        model: Any = Qwen2_5_VLForConditionalGeneration._from_config(
            config, dtype=DTYPES[dtype], attn_implementation="sdpa"
        )
    end, pad = ids[END], processor.tokenizer.pad_token_id
    model.generation_config.update(eos_token_id=end, pad_token_id=pad, bos_token_id=None)
    suppress_placeholders(model, processor)
    compute_in(model, DTYPES[dtype])
    return model


class StandInProcessor(ProcessorMixin):
    """What Qwen2.5-VL's processor does for images; it knows no videos, for which that one needs torchvision."""

    image_token = IMAGE

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None) -> None:
        """Takes the parts."""
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE)

    def __call__(self, images: Any = None, text: Any = None, **options: Any) -> BatchFeature:
        """Returns token ids, mask and token types, and patches and grids of the images."""
        tensors = options.pop("return_tensors", None)
        options = {name: value for name, value in options.items() if name in ("padding", "padding_side", "max_length")}
        texts = [text] if isinstance(text, str) else list(text)
        fields: dict[str, Any] = {}
        if images is not None:
            flat = [image for row in images for image in (row if isinstance(row, list | tuple) else [row])]
            fields = dict(self.image_processor(images=flat, return_tensors="pt"))
            counts = iter((fields["image_grid_thw"].prod(-1) // self.image_processor.merge_size**2).tolist())
            texts = ["".join(_expanded(part, counts) for part in _parts(one)) for one in texts]
        tokens = self.tokenizer(texts, add_special_tokens=False, **options)
        kinds = [[int(token == self.image_token_id) for token in row] for row in tokens["input_ids"]]
        return BatchFeature({**tokens, "mm_token_type_ids": kinds, **fields}, tensor_type=tensors)


def _parts(text: str) -> list[str]:
    """Cuts a text before and after each image token."""
    pieces = text.split(IMAGE)
    return [part for piece in pieces for part in (piece, IMAGE)][:-1]


def _expanded(part: str, counts: Any) -> str:
    return IMAGE * next(counts) if part == IMAGE else part


def build_stand_in(question: str) -> StandInProcessor:
    """The stand-in processor; its tokenizer is trained on the question."""
    backend = split_tags(build_tokenizer([question]))
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=PAD, eos_token=END, padding_side="left")
    return StandInProcessor(Qwen2VLImageProcessorPil(patch_size=14, merge_size=2), tokenizer, TEMPLATE)
