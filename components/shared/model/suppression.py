"""Gives placeholder tokens, such as the image token, a probability of 0.

A sampled image placeholder makes the next forward pass fail ("image features and image tokens do not match"). So the
LM head gets a bias of -1e4 at the ids of placeholders. It applies wherever logits are computed (sampling, greedy
decoding, TRL's fused log-probs, the reference model), so that sampling and log-probs use the same distribution.

The bias is a non-persistent buffer: no state dict and no saved model contains it. If the head already has a bias, its
entries are set instead, and training does not change them: no gradient reaches a token of probability 0.
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

SUPPRESSED = -1e4


def placeholder_ids(model: PreTrainedModel, processor: Any) -> list[int]:
    """Ids of image, video, audio and padding tokens and of the processor's other image tokens; never the EOS."""
    tokenizer = processor.tokenizer
    ids = {getattr(model.config, f"{kind}_token_id", None) for kind in ("image", "video", "audio", "pad")}
    ids |= {tokenizer.pad_token_id, getattr(processor, "image_token_id", None)}
    ids |= {getattr(processor, f"{token}_id", None) for token in ("fake_image_token", "global_image_token")}
    for name in ("vision_start_token_id", "vision_end_token_id", "vision_token_id"):
        ids.add(getattr(model.config, name, None))
    for token in ("<fake_token_around_image>", "<global-img>"):
        ids.add(tokenizer.get_vocab().get(token))
    eos = model.generation_config.eos_token_id
    ends = set(eos if isinstance(eos, list) else [eos]) | {tokenizer.eos_token_id}
    return sorted(i for i in ids - ends if isinstance(i, int) and i >= 0)


def suppress_placeholders(model: PreTrainedModel, processor: Any) -> list[int]:
    """Suppresses the placeholder tokens of `model` in place and returns their ids. Calling it twice is harmless.

    Raises:
        TypeError: the model has no LM head.
    """
    ids = placeholder_ids(model, processor)
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Module) or not hasattr(head, "weight"):
        raise TypeError(f"{type(model).__name__} has no LM head, so tokens cannot be suppressed")
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
