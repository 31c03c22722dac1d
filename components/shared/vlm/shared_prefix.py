"""The shared prefix: image and prompt are encoded once per input, whatever the number of completions.

A step of GRPO holds G completions of a few tokens on one image and prompt of hundreds. Here the model runs over each
image and prompt once; its keys and values are handed to every completion of that input (with gradients, so that what
the completions want of the image flows back through the one pass), and the completions run as short suffixes.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import log_softmax
from transformers import DynamicCache

# Causal decoders over [image and prompt | completion], whose prefix does not depend on what follows.
SHARING = ("idefics3",)


@dataclass
class Prefix:
    """Encoded inputs.

    Attributes:
        cache: keys and values of U inputs.
        logits: `(U, V)` of the token after the prompt.
        mask: `(U, P)`, 0 where the prompt is padded.
    """

    cache: DynamicCache
    logits: Tensor
    mask: Tensor

    def shared_by(self, owners: Tensor) -> "Prefix":
        """The prefix of each completion, `owners` `(N,)` naming its input. Uses this prefix up."""
        self.cache.batch_select_indices(owners)
        return Prefix(self.cache, self.logits[owners], self.mask[owners])


def encode(model: Any, input_ids: Tensor, mask: Tensor, fields: dict[str, Tensor]) -> Prefix:
    """Runs the model over U inputs.

    Args:
        input_ids, mask: `(U, P)`, padded on the left.
        fields: what the processor gives besides: pixel values and their like, a row an input.
    """
    out = model(input_ids=input_ids, attention_mask=mask, use_cache=True, logits_to_keep=1, **fields)
    return Prefix(out.past_key_values, out.logits[:, -1], mask)


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
        out = model(input_ids=completion_ids[:, :-1], attention_mask=mask, past_key_values=prefix.cache, use_cache=True)
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
        logits = model(
            input_ids=token[:, None], attention_mask=mask, past_key_values=prefix.cache, use_cache=True
        ).logits[:, -1]
