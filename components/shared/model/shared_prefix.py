"""The shared prefix: image and prompt are encoded once per input, whatever the number of completions.

A GRPO step has G completions of a few tokens for each image and prompt of hundreds of tokens. Here an input is one
sequence: its prompt, followed by all its completions. A block mask lets each completion attend to the prompt and to
itself, and its positions continue from the prompt's, as if it were the only one. So the prompt's keys and values are
computed and stored once. (Expanding a cache to G copies instead would copy it in every layer and for every sampled
token, and would have to sum the copies' gradients.)

In a model with M-RoPE, an image takes fewer positions than tokens. The model computes the prompt's positions then, and
the completions continue from there.
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
SHARING_MODELS = ("idefics3", "llava", "qwen2_5_vl")
# Attention implementations that accept a block mask.
BLOCK_MASK_ATTENTION = ("eager", "sdpa")
# What processors return besides token ids and mask.
IMAGE_FIELDS = (
    "pixel_values",
    "pixel_attention_mask",
    "image_grid_thw",
    "image_sizes",
    "token_type_ids",
    "mm_token_type_ids",
)
# Those of them with one column per token.
PER_TOKEN = ("token_type_ids", "mm_token_type_ids")


def unshared_reason(model_type: str, attention: str) -> str | None:
    """Returns why a model's prefix cannot be shared; None where it can."""
    if model_type not in SHARING_MODELS:
        return f"only {', '.join(SHARING_MODELS)} are known to encode a prompt independently of what follows it"
    if attention not in BLOCK_MASK_ATTENTION:
        return f"model.attention: only {' and '.join(BLOCK_MASK_ATTENTION)} take the block mask that it needs"
    return None


class Slots:
    """Assigns each of N completions to one of the S slots of its input, in order; some slots stay empty.

    Attributes:
        owners: `(N,)` the input of each completion.
        slots: `(N,)` its slot there.
        inputs, count: U and S.
    """

    def __init__(self, owners: Tensor, inputs: int) -> None:
        """S is the largest number of completions of an input."""
        counts = torch.bincount(owners, minlength=inputs)
        order = torch.argsort(owners, stable=True)
        starts = (counts.cumsum(0) - counts)[owners[order]]
        self.owners, self.inputs, self.count = owners, inputs, int(counts.max())
        self.slots = torch.empty_like(owners)
        self.slots[order] = torch.arange(len(owners), device=owners.device) - starts

    def spread(self, rows: Tensor) -> Tensor:
        """Arranges `(N, L)` as `(U, S, L)`. Empty slots hold 0, a token like any other, and are never collected."""
        spread = rows.new_zeros(self.inputs, self.count, *rows.shape[1:])
        spread[self.owners, self.slots] = rows
        return spread

    def collect(self, spread: Tensor) -> Tensor:
        """Arranges `(U, S, ...)` as `(N, ...)`: the inverse of `spread`."""
        return spread[self.owners, self.slots]


@dataclass
class Prefix:
    """Encoded inputs.

    Attributes:
        cache: keys and values of U inputs.
        logits: `(U, V)` of the token after the prompt.
        mask: `(U, P)`, 0 where the prompt is padded.
        next_position: `(U,)` the position of the token after the prompt; with M-RoPE `(3, U)`.
    """

    cache: DynamicCache
    logits: Tensor
    mask: Tensor
    next_position: Tensor

    def fork(self) -> DynamicCache:
        """Returns a cache that starts with this prefix and grows without changing it."""
        return fork(self.cache)


def fork(cache: DynamicCache) -> DynamicCache:
    """Returns a cache that starts with `cache` and grows without changing it; no tensor is copied."""
    grown = copy(cache)
    grown.layers = [copy(layer) for layer in cache.layers]
    return grown


def select(fields: dict[str, Any], rows: Sequence[int] | Tensor) -> dict[str, Any]:
    """Selects rows of a processor's output, which has one image per row.

    Args:
        fields: tensors or lists with one row per input. With `image_grid_thw`, `(N, 3)`, `pixel_values` are the
            concatenated patches of all images.
        rows: may repeat a row.
    """
    wanted = torch.as_tensor(rows)
    chosen: dict[str, Any] = {}
    for name, value in fields.items():
        if name == "pixel_values" and fields.get("image_grid_thw") is not None:
            counts = _as_tensor(fields["image_grid_thw"]).prod(-1).tolist()
            parts = torch.split(_as_tensor(value), counts)
            chosen[name] = torch.cat([parts[row] for row in wanted.tolist()])
        elif isinstance(value, list):
            chosen[name] = [value[row] for row in wanted.tolist()]
        elif value is not None:
            chosen[name] = value[wanted.to(value.device)] if isinstance(value, Tensor) else value[wanted.numpy()]
    return chosen


def _as_tensor(value: Any) -> Tensor:
    """A tensor as it is, on any device and of any dtype; lists and lists of arrays as a new one."""
    return value if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))


def encode(model: Any, input_ids: Tensor, mask: Tensor, fields: dict[str, Tensor]) -> Prefix:
    """Runs the model over U inputs.

    Args:
        input_ids, mask: `(U, P)`, padded on the left.
        fields: the processor's other output, of `IMAGE_FIELDS`; one image per input.
    """
    positions, next_position = prompt_positions(model, input_ids, mask, fields)
    out = model(
        input_ids=input_ids, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1, **fields
    )
    return Prefix(out.past_key_values, out.logits[:, -1], mask, next_position)


def forward_after(model: Any, prefix: Prefix, suffix: Tensor, offsets: Tensor, blocks: Tensor) -> Tensor:
    """Runs the model over tokens packed behind encoded inputs.

    Args:
        prefix: the encoded inputs; it is not changed.
        suffix: `(U, K)` token ids.
        offsets: `(K,)` position of each token relative to the token after the prompt.
        blocks: `(K, K)`, true where token q attends to token k.

    Returns:
        Logits `(U, K, V)`.
    """
    out = model(
        input_ids=suffix,
        attention_mask=attention_mask_for(model, suffix_visibility(prefix.mask, blocks)),
        position_ids=prefix.next_position[..., None] + offsets,
        past_key_values=prefix.fork(),
        use_cache=True,
    )
    logits: Tensor = out.logits
    return logits


def forward_whole(
    model: Any,
    prompt_ids: Tensor,
    mask: Tensor,
    fields: dict[str, Tensor],
    suffix: Tensor,
    offsets: Tensor,
    blocks: Tensor,
) -> Tensor:
    """Runs the model over inputs with tokens packed behind them, in one pass without a cache.

    Args:
        prompt_ids, mask, fields: as `encode` takes them.
        suffix, offsets, blocks: as `forward_after` takes them.

    Returns:
        Logits `(U, 1 + K, V)`, first those of the token after the prompt.
    """
    positions, next_position = prompt_positions(model, prompt_ids, mask, fields)
    length, extra = prompt_ids.shape[1], suffix.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
    # Padding attends to itself, since a softmax over nothing is undefined.
    prompt_visible = causal & mask[:, None].bool() | torch.eye(length, dtype=torch.bool, device=mask.device)
    visible = torch.cat([pad(prompt_visible, (0, extra)), suffix_visibility(mask, blocks)], dim=1)
    out = model(
        input_ids=torch.cat([prompt_ids, suffix], dim=1),
        attention_mask=attention_mask_for(model, visible),
        position_ids=torch.cat([positions, next_position[..., None] + offsets], dim=-1),
        use_cache=False,
        logits_to_keep=extra + 1,
        **pad_fields(fields, extra),
    )
    logits: Tensor = out.logits
    return logits


def pad_fields(fields: dict[str, Tensor], extra: int) -> dict[str, Tensor]:
    """Extends the fields that have a column per token by `extra` columns of text."""
    return {name: pad(value, (0, extra)) if name in PER_TOKEN else value for name, value in fields.items()}


def score(
    model: Any, prefix: Prefix, slots: Slots, completion_ids: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Computes the log-probability of each completion token and the entropy of the distribution it was sampled from.

    Args:
        prefix: the encoded inputs; it is not changed.
        slots: which completion belongs to which input.
        completion_ids: `(N, L)`, padded on the right.
        temperature: logits are divided by it.

    Returns:
        Two tensors `(N, L)`. Entropies carry no gradient. Where a completion is padded, the values mean nothing.
    """
    ids = slots.spread(completion_ids)
    logits = None
    if ids.shape[2] > 1:
        layout = _suffix_layout(slots, ids.shape[2] - 1, ids.device)
        logits = forward_after(model, prefix, ids[:, :, :-1].flatten(1), *layout)
    return _log_probs_and_entropies(slots, ids, prefix.logits, logits, temperature)


def score_without_cache(
    model: Any,
    prompt_ids: Tensor,
    mask: Tensor,
    fields: dict[str, Tensor],
    slots: Slots,
    completion_ids: Tensor,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Computes what `encode` and `score` compute in one pass without a cache, so it works with gradient checkpointing.

    Args:
        prompt_ids, mask, fields: as `encode` takes them.
        slots, completion_ids, temperature: as `score` takes them.
    """
    ids = slots.spread(completion_ids)
    layout = _suffix_layout(slots, ids.shape[2] - 1, ids.device)
    logits = forward_whole(model, prompt_ids, mask, fields, ids[:, :, :-1].flatten(1), *layout)
    return _log_probs_and_entropies(slots, ids, logits[:, 0], logits[:, 1:], temperature)


@torch.no_grad()
def sample(
    model: Any, prefix: Prefix, slots: Slots, max_new_tokens: int, temperature: float, ends: list[int], padding: int
) -> Tensor:
    """Samples a completion in each slot from the model's own distribution.

    Args:
        ends: token ids that end a completion.
        padding: token id that follows an end token.

    Returns:
        `(N, L)` token ids, L at most `max_new_tokens`.

    Raises:
        ConcordError: a logit is NaN.
    """
    cache, device = prefix.fork(), prefix.logits.device
    stops = torch.tensor(ends, device=device)
    own_slot = torch.eye(slots.count, dtype=torch.bool, device=device)
    logits = prefix.logits[:, None].expand(-1, slots.count, -1)
    active = torch.ones(logits.shape[:2], dtype=torch.bool, device=device)
    sampled: list[Tensor] = []
    while True:
        if logits.isnan().any():
            raise ConcordError(
                "the model's logits are NaN: its weights have grown beyond the range of its dtype. Lower lr, raise "
                "warmup_steps, or train in float32."
            )
        probabilities = torch.softmax(logits.float() / temperature, dim=-1)
        token = torch.multinomial(probabilities.flatten(0, 1), 1).view(active.shape)
        token = torch.where(active, token, torch.full_like(token, padding))
        sampled.append(token)
        active = active & ~torch.isin(token, stops)
        if len(sampled) == max_new_tokens or not active.any():
            return slots.collect(torch.stack(sampled, dim=2))
        start = prefix.next_position
        positions = (start + len(sampled) - 1)[..., None].expand(*start.shape, slots.count)
        logits = model(
            input_ids=token,
            attention_mask=attention_mask_for(model, suffix_visibility(prefix.mask, own_slot.repeat(1, len(sampled)))),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).logits


def prompt_positions(model: Any, input_ids: Tensor, mask: Tensor, fields: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Returns the positions of the prompt's tokens, `(U, P)` or with M-RoPE `(3, U, P)`, and of the token after it."""
    rotary = next((part for part in model.modules() if hasattr(part, "get_rope_index")), None)
    if rotary is None:
        columns = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        return columns, columns[:, -1] + 1
    grid, kinds = fields.get("image_grid_thw"), fields.get("mm_token_type_ids")
    ids, _ = rotary.get_rope_index(input_ids, kinds, image_grid_thw=grid, attention_mask=mask)
    return ids, (ids.amax(dim=(0, 2)) + 1).expand(3, -1)


def _suffix_layout(slots: Slots, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Lays out S completions of `length` tokens after the prompt: offsets `(S L,)` and blocks `(S L, S L)`."""
    offsets = torch.arange(length, device=device).repeat(slots.count)
    own = torch.eye(slots.count, dtype=torch.bool, device=device)
    causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    return offsets, torch.kron(own, causal)


def suffix_visibility(prompt: Tensor, blocks: Tensor) -> Tensor:
    """Returns what each completion token attends to, `(U, Q, P + K)`: the prompt without padding, then `blocks`.

    Args:
        prompt: `(U, P)`, 0 where it is padded.
        blocks: `(Q, K)`, true where token q attends to token k.
    """
    inputs, queries = len(prompt), len(blocks)
    return torch.cat(
        [prompt[:, None].bool().expand(-1, queries, -1), blocks[None].expand(inputs, -1, -1)],
        dim=2,
    )


def attention_mask_for(model: Any, visible: Tensor) -> Tensor:
    """Converts `(U, Q, K)` to the model's mask: booleans, or for eager attention a summand of the logits."""
    inner = getattr(model, "module", model)  # DDP has no config
    if inner.config.get_text_config()._attn_implementation != "eager":
        return visible[:, None]
    return torch.zeros_like(visible, dtype=inner.dtype).masked_fill(~visible, torch.finfo(inner.dtype).min)[:, None]


def _log_probs_and_entropies(
    slots: Slots, ids: Tensor, first: Tensor, rest: Tensor | None, temperature: float
) -> tuple[Tensor, Tensor]:
    """Returns log-probs and entropies `(N, L)` of `ids` `(U, S, L)`.

    Args:
        first: logits `(U, V)` of the first token, the same for all completions of an input.
        rest: logits `(U, S (L - 1), V)` of the other tokens; None where L is 1.
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
