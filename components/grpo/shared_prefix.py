"""The shared prefix: image and prompt are encoded once per input, whatever the number of completions.

A step of GRPO holds G completions of a few tokens on one image and prompt of hundreds. Here an input is one sequence:
its prompt, and after it all its completions, side by side. A block mask lets each completion see the prompt and
itself; its positions count on from the prompt's, as if it stood there alone. So the prompt's keys and values are
neither computed nor held more than once. (The other way, a cache expanded to G copies, costs those copies in every
layer and at every sampled token, and adding up their gradients.)

Positions are those that the whole sequence would have: a model with M-RoPE, where an image takes fewer positions than
tokens, is asked for the prompt's positions, and the completions count on from there.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import log_softmax, pad
from transformers import DynamicCache

from components.errors import ConcordError

# Causal decoders over [image and prompt | completion], whose prefix does not depend on what follows.
SHARING = ("idefics3", "llava", "qwen2_5_vl")
# Attention that takes a block mask.
MASKED_ATTENTION = ("eager", "sdpa")
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


def obstacle(model_type: str, attention: str) -> str | None:
    """Why a model's prefix cannot be shared, in words; None where it can."""
    if model_type not in SHARING:
        return f"of the models, only {', '.join(SHARING)} are known to encode a prompt apart from what follows it"
    if attention not in MASKED_ATTENTION:
        return f"of model.attention, only {' and '.join(MASKED_ATTENTION)} take the block mask that it needs"
    return None


class Slots:
    """Where each of N completions stands among those of its input: S slots an input, some of them empty.

    Attributes:
        owners: `(N,)` the input of each completion.
        slots: `(N,)` its place there.
        inputs, count: U and S.
    """

    def __init__(self, owners: Tensor, inputs: int) -> None:
        """Places are in the order of the completions."""
        counts = torch.bincount(owners, minlength=inputs)
        order = torch.argsort(owners, stable=True)
        starts = (counts.cumsum(0) - counts)[owners[order]]
        self.owners, self.inputs, self.count = owners, inputs, int(counts.max())
        self.slots = torch.empty_like(owners)
        self.slots[order] = torch.arange(len(owners), device=owners.device) - starts

    def spread(self, rows: Tensor) -> Tensor:
        """`(N, L)` to `(U, S, L)`; empty slots hold 0, a token like any other, and are never collected."""
        spread = rows.new_zeros(self.inputs, self.count, *rows.shape[1:])
        spread[self.owners, self.slots] = rows
        return spread

    def collect(self, spread: Tensor) -> Tensor:
        """`(U, S, ...)` to `(N, ...)`."""
        return spread[self.owners, self.slots]


@dataclass
class Prefix:
    """Encoded inputs.

    Attributes:
        cache: keys and values of U inputs.
        logits: `(U, V)` of the token after the prompt.
        mask: `(U, P)`, 0 where the prompt is padded.
        after: `(U,)` the position of the token after the prompt; with M-RoPE `(3, U)`.
    """

    cache: DynamicCache
    logits: Tensor
    mask: Tensor
    after: Tensor

    def reader(self) -> DynamicCache:
        """A cache that starts with this prefix and grows without changing it; nothing is copied."""
        cache = copy(self.cache)
        cache.layers = [copy(layer) for layer in self.cache.layers]
        return cache


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
    positions, after = _positions(model, input_ids, mask, fields)
    out = model(
        input_ids=input_ids, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1, **fields
    )
    return Prefix(out.past_key_values, out.logits[:, -1], mask, after)


def score(
    model: Any, prefix: Prefix, slots: Slots, completion_ids: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probability of each completion token, and the entropy of the distribution that it was drawn from.

    Args:
        prefix: what the completions stand on; it stays as it is.
        slots: which completion stands on which input.
        completion_ids: `(N, L)`, padded on the right.

    Returns:
        Two tensors `(N, L)`, the logits divided by `temperature`; entropies carry no gradient. They mean nothing
        where a completion is padded.
    """
    ids = slots.spread(completion_ids)
    logits = None
    if ids.shape[2] > 1:
        places, blocks = _suffixes(slots, ids.shape[2] - 1, prefix.after)
        out = model(
            input_ids=ids[:, :, :-1].flatten(1),
            attention_mask=_for_attention(model, _seen(prefix.mask, blocks)),
            position_ids=places,
            past_key_values=prefix.reader(),
            use_cache=True,
        )
        logits = out.logits
    return _judged(slots, ids, prefix.logits, logits, temperature)


def score_whole(
    model: Any,
    prompt_ids: Tensor,
    mask: Tensor,
    fields: dict[str, Tensor],
    slots: Slots,
    completion_ids: Tensor,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """`score` in one pass from the beginning: keeps no cache, and so goes with gradient checkpointing.

    Args:
        prompt_ids, mask, fields: as `encode` takes them.
        slots, completion_ids, temperature: as `score` takes them.
    """
    ids = slots.spread(completion_ids)
    positions, after = _positions(model, prompt_ids, mask, fields)
    places, blocks = _suffixes(slots, ids.shape[2] - 1, after)
    suffix = ids[:, :, :-1].flatten(1)
    length, extra = prompt_ids.shape[1], suffix.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
    # A token of padding sees itself, since a row that sees nothing has no softmax.
    prompt_sees = causal & mask[:, None].bool() | torch.eye(length, dtype=torch.bool, device=mask.device)
    seen = torch.cat([pad(prompt_sees, (0, extra)), _seen(mask, blocks)], dim=1)
    out = model(
        input_ids=torch.cat([prompt_ids, suffix], dim=1),
        attention_mask=_for_attention(model, seen),
        position_ids=torch.cat([positions, places], dim=-1),
        use_cache=False,
        logits_to_keep=extra + 1,
        **{name: pad(value, (0, extra)) if name in PER_TOKEN else value for name, value in fields.items()},
    )
    return _judged(slots, ids, out.logits[:, 0], out.logits[:, 1:], temperature)


@torch.no_grad()
def sample(
    model: Any, prefix: Prefix, slots: Slots, max_new_tokens: int, temperature: float, ends: list[int], padding: int
) -> Tensor:
    """Draws a completion in each slot from the model's own distribution.

    Returns:
        `(N, L)` token ids, L at most `max_new_tokens`; after an end token, `padding`.

    Raises:
        ConcordError: a logit is not a number.
    """
    cache, device = prefix.reader(), prefix.logits.device
    stops = torch.tensor(ends, device=device)
    apart = torch.eye(slots.count, dtype=torch.bool, device=device)
    logits = prefix.logits[:, None].expand(-1, slots.count, -1)
    going = torch.ones(logits.shape[:2], dtype=torch.bool, device=device)
    drawn: list[Tensor] = []
    while True:
        if logits.isnan().any():
            raise ConcordError(
                "the model's logits are not numbers: its weights have grown beyond what its dtype holds. Lower lr, "
                "give it more warmup_steps, or train in float32."
            )
        chances = torch.softmax(logits.float() / temperature, dim=-1)
        token = torch.multinomial(chances.flatten(0, 1), 1).view(going.shape)
        token = torch.where(going, token, torch.full_like(token, padding))
        drawn.append(token)
        going = going & ~torch.isin(token, stops)
        if len(drawn) == max_new_tokens or not going.any():
            return slots.collect(torch.stack(drawn, dim=2))
        place = (prefix.after + len(drawn) - 1)[..., None].expand(*prefix.after.shape, slots.count)
        logits = model(
            input_ids=token,
            attention_mask=_for_attention(model, _seen(prefix.mask, apart.repeat(1, len(drawn)))),
            position_ids=place,
            past_key_values=cache,
            use_cache=True,
        ).logits


def _positions(model: Any, input_ids: Tensor, mask: Tensor, fields: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Positions of the prompt's tokens, `(U, P)` or with M-RoPE `(3, U, P)`, and of the token after it."""
    rotary = next((part for part in model.modules() if hasattr(part, "get_rope_index")), None)
    if rotary is None:
        columns = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        return columns, columns[:, -1] + 1
    grid, kinds = fields.get("image_grid_thw"), fields.get("mm_token_type_ids")
    ids, _ = rotary.get_rope_index(input_ids, kinds, image_grid_thw=grid, attention_mask=mask)
    return ids, (ids.amax(dim=(0, 2)) + 1).expand(3, -1)


def _suffixes(slots: Slots, length: int, after: Tensor) -> tuple[Tensor, Tensor]:
    """Positions `(..., U, S L)` of S completions of `length` tokens, and which of them sees which: `(S L, S L)`."""
    offsets = torch.arange(length, device=after.device).repeat(slots.count)
    own = torch.eye(slots.count, dtype=torch.bool, device=after.device)
    causal = torch.ones(length, length, dtype=torch.bool, device=after.device).tril()
    return after[..., None] + offsets, torch.kron(own, causal)


def _seen(prompt: Tensor, blocks: Tensor) -> Tensor:
    """What each suffix token sees, `(U, Q, P + K)`: of the prompt all but padding, of the suffixes what `blocks` says.

    Args:
        prompt: `(U, P)`, 0 where it is padded.
        blocks: `(Q, K)`, true where token q sees token k.
    """
    inputs, queries = len(prompt), len(blocks)
    return torch.cat(
        [prompt[:, None].bool().expand(-1, queries, -1), blocks[None].expand(inputs, -1, -1)],
        dim=2,
    )


def _for_attention(model: Any, seen: Tensor) -> Tensor:
    """`(U, Q, K)` as the model's attention takes it: truth values, or for eager attention a summand."""
    inner = getattr(model, "module", model)  # DDP has no config
    if inner.config.get_text_config()._attn_implementation != "eager":
        return seen[:, None]
    return torch.zeros_like(seen, dtype=inner.dtype).masked_fill(~seen, torch.finfo(inner.dtype).min)[:, None]


def _judged(slots: Slots, ids: Tensor, first: Tensor, rest: Tensor | None, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies `(N, L)` of `ids` `(U, S, L)`.

    Args:
        first: logits `(U, V)` of the first token of all completions of an input.
        rest: logits `(U, S (L - 1), V)` of the others.
    """
    opening = log_softmax(first.float() / temperature, dim=-1)
    logps = [opening.gather(-1, ids[:, :, 0])[..., None]]
    entropies = [_entropy(opening)[:, None, None].expand(-1, slots.count, 1)]
    if rest is not None:
        following = log_softmax(rest.float() / temperature, dim=-1).unflatten(1, (slots.count, -1))
        logps.append(following.gather(-1, ids[:, :, 1:, None])[..., 0])
        entropies.append(_entropy(following))
    return slots.collect(torch.cat(logps, dim=2)), slots.collect(torch.cat(entropies, dim=2))


def _entropy(log_probs: Tensor) -> Tensor:
    with torch.no_grad():
        return -(log_probs.exp() * log_probs).sum(-1)
