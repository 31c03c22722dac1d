"""The shared prefix: image and prompt are encoded once per input, whatever the number of completions.

A step of GRPO holds G completions of a few tokens on one image and prompt of hundreds. Here the model runs over each
image and prompt once; its keys and values are handed to every completion of that input (with gradients, so that what
the completions want of the image flows back through the one pass), and the completions run as short suffixes.

Positions are those that the whole sequence would have: a model with M-RoPE, where an image takes fewer positions than
tokens, is asked for the prompt's positions, and the completion counts on from there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import log_softmax
from transformers import DynamicCache

# Causal decoders over [image and prompt | completion], whose prefix does not depend on what follows.
SHARING = ("idefics3", "llava", "qwen2_5_vl")
# What processors give besides token ids and mask, and what of it has a column a token.
IMAGE_FIELDS = (
    "pixel_values",
    "pixel_attention_mask",
    "image_grid_thw",
    "image_sizes",
    "token_type_ids",
    "mm_token_type_ids",
)
PER_TOKEN = ("token_type_ids", "mm_token_type_ids")


@dataclass
class Prefix:
    """Encoded inputs.

    Attributes:
        cache: keys and values of U inputs.
        logits: `(U, V)` of the token after the prompt.
        mask: `(U, P)`, 0 where the prompt is padded.
        position: `(U,)`, that of the token after the prompt; None where the model counts by itself.
    """

    cache: DynamicCache
    logits: Tensor
    mask: Tensor
    position: Tensor | None = None

    def shared_by(self, owners: Tensor) -> "Prefix":
        """The prefix of each completion, `owners` `(N,)` naming its input."""
        cache = DynamicCache()
        for index, layer in enumerate(self.cache.layers):
            cache.update(layer.keys[owners], layer.values[owners], index)
        position = None if self.position is None else self.position[owners]
        return Prefix(cache, self.logits[owners], self.mask[owners], position)

    def positions(self, start: int, count: int) -> dict[str, Tensor]:
        """What says to the model where `count` tokens stand, the first of them `start` after the prompt."""
        if self.position is None:
            return {}
        offsets = torch.arange(start, start + count, device=self.position.device)
        return {"position_ids": (self.position[:, None] + offsets).expand(3, -1, -1)}


def select(fields: dict[str, Any], rows: Sequence[int] | Tensor) -> dict[str, Any]:
    """The fields of some rows of a processor's output, one image a row; a row may be named more than once.

    Args:
        fields: tensors with a row an input, or lists. With `image_grid_thw`, `(N, 3)`, `pixel_values` are the patches
            of all images one after another.
    """
    wanted = torch.as_tensor(rows)
    chosen: dict[str, Any] = {}
    for name, value in fields.items():
        if name == "pixel_values" and fields.get("image_grid_thw") is not None:
            counts = torch.as_tensor(np.asarray(fields["image_grid_thw"])).prod(-1).tolist()
            parts = torch.split(torch.as_tensor(np.asarray(value)), counts)
            chosen[name] = torch.cat([parts[row] for row in wanted.tolist()])
        elif isinstance(value, list):
            chosen[name] = [value[row] for row in wanted.tolist()]
        elif value is not None:
            chosen[name] = value[wanted.to(value.device)] if isinstance(value, Tensor) else value[wanted.numpy()]
    return chosen


def encode(model: Any, input_ids: Tensor, mask: Tensor, fields: dict[str, Tensor]) -> Prefix:
    """Runs the model over U inputs.

    Args:
        input_ids, mask: `(U, P)`, padded on the left.
        fields: what the processor gives besides, of `IMAGE_FIELDS`; one image an input.
    """
    rotary = next((part for part in model.modules() if hasattr(part, "get_rope_index")), None)
    positions, after = {}, None
    if rotary is not None:
        grid, kinds = fields.get("image_grid_thw"), fields.get("mm_token_type_ids")
        ids, _ = rotary.get_rope_index(input_ids, kinds, image_grid_thw=grid, attention_mask=mask)
        positions, after = {"position_ids": ids}, ids.amax(dim=(0, 2)) + 1
    out = model(input_ids=input_ids, attention_mask=mask, use_cache=True, logits_to_keep=1, **positions, **fields)
    return Prefix(out.past_key_values, out.logits[:, -1], mask, after)


def score(
    model: Any, prefix: Prefix, completion_ids: Tensor, completion_mask: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probability of each completion token, and the entropy of the distribution that it was drawn from.

    Args:
        prefix: one row a completion, as `shared_by` gives it.
        completion_ids, completion_mask: `(N, L)`, padded on the right.

    Returns:
        Two tensors `(N, L)`, the logits divided by `temperature`; entropies carry no gradient.
    """
    logits = prefix.logits[:, None]
    if completion_ids.shape[1] > 1:
        mask = torch.cat([prefix.mask, completion_mask[:, :-1].to(prefix.mask.dtype)], dim=1)
        ids, places = completion_ids[:, :-1], prefix.positions(0, completion_ids.shape[1] - 1)
        out = model(input_ids=ids, attention_mask=mask, past_key_values=prefix.cache, use_cache=True, **places)
        logits = torch.cat([logits, out.logits], dim=1)
    log_probs = log_softmax(logits.float() / temperature, dim=-1)
    with torch.no_grad():
        entropy = -(log_probs.exp() * log_probs).sum(-1)
    return log_probs.gather(-1, completion_ids[..., None])[..., 0], entropy


@torch.no_grad()
def sample(model: Any, prefix: Prefix, max_new_tokens: int, temperature: float, ends: list[int], pad: int) -> Tensor:
    """Draws a completion for each row of the prefix from the model's own distribution.

    Returns:
        `(N, L)` token ids, L at most `max_new_tokens`; after an end token, `pad`.
    """
    stops = torch.tensor(ends, device=prefix.logits.device)
    going = torch.ones(len(prefix.logits), dtype=torch.bool, device=stops.device)
    logits, mask, drawn = prefix.logits, prefix.mask, []
    while True:
        token = torch.multinomial(torch.softmax(logits.float() / temperature, dim=-1), 1)[:, 0]
        token = torch.where(going, token, torch.full_like(token, pad))
        drawn.append(token)
        going = going & ~torch.isin(token, stops)
        if len(drawn) == max_new_tokens or not going.any():
            return torch.stack(drawn, dim=1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        places = prefix.positions(len(drawn) - 1, 1)
        logits = model(
            input_ids=token[:, None], attention_mask=mask, past_key_values=prefix.cache, use_cache=True, **places
        ).logits[:, -1]
