"""Placeholder tokens that a policy must never emit.

A sampled image placeholder makes the next forward pass fail ("image features and image tokens do not match"). Here the
LM head gets a bias of -1e4 at those ids: one place, and it holds wherever logits are made: in sampling, in greedy
decoding, in TRL's fused log-probs and in the reference model alike, so that sampling and log-probs stay one
distribution. The bias is a non-persistent buffer: it is in no state dict and in no saved model. A head that has a bias
of its own gets the value in there, and keeps it: no gradient reaches a token of probability 0.
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

SUPPRESSED = -1e4


def placeholder_ids(model: PreTrainedModel, processor: Any) -> list[int]:
    """Ids of image, video, audio and padding tokens, and of the processor's other image marks; never the EOS."""
    tokenizer = processor.tokenizer
    found = {getattr(model.config, f"{kind}_token_id", None) for kind in ("image", "video", "audio", "pad")}
    found |= {tokenizer.pad_token_id, getattr(processor, "image_token_id", None)}
    found |= {getattr(processor, f"{mark}_id", None) for mark in ("fake_image_token", "global_image_token")}
    for name in ("vision_start_token_id", "vision_end_token_id", "vision_token_id"):
        found.add(getattr(model.config, name, None))
    for token in ("<fake_token_around_image>", "<global-img>"):
        found.add(tokenizer.get_vocab().get(token))
    eos = model.generation_config.eos_token_id
    ends = set(eos if isinstance(eos, list) else [eos]) | {tokenizer.eos_token_id}
    return sorted(i for i in found - ends if isinstance(i, int) and i >= 0)


def suppress_placeholders(model: PreTrainedModel, processor: Any) -> list[int]:
    """Makes the placeholder tokens of `model` impossible, in place; returns their ids. Calling it again is harmless."""
    ids = placeholder_ids(model, processor)
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Module) or not hasattr(head, "weight"):
        raise TypeError(f"{type(model).__name__} has no LM head to suppress tokens in")
    present = getattr(head, "bias", None)
    if isinstance(present, nn.Parameter):
        with torch.no_grad():
            present[ids] = SUPPRESSED
        return ids
    weight: Any = head.weight
    bias = torch.zeros(weight.shape[0], dtype=weight.dtype, device=weight.device)
    bias[ids] = SUPPRESSED
    head._parameters.pop("bias", None)
    head.register_buffer("bias", bias, persistent=False)
    return ids
