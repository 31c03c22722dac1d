"""The model's probability of every number of a task, exactly, in one pass per image.

The inner nodes of the answer tree are packed behind the prompt as one suffix. A node attends to the prompt, to its
ancestors and to itself, and its position is the prompt's end plus its depth. The logits at a node give the
log-probabilities of its children, so log p(n | x) is a sum over the edges on the path of n. Log-probabilities are over
the whole vocabulary. Logits are computed a few nodes at a time, also in the backward pass: `(U, T, V)` is never stored.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint

from components.shared.model.answer_tree import AnswerTree
from components.shared.model.shared_prefix import (
    PER_TOKEN,
    Prefix,
    attention_mask_for,
    prompt_positions,
    select,
    suffix_visibility,
)

LOGIT_BYTES = 2**27  # of one block of logits in float32


@dataclass(frozen=True)
class LogProbs:
    """Log-probabilities of all numbers.

    Attributes:
        numbers: `(U, N)`; -inf for numbers below a branch that was left out.
        dropped: `(U,)` probability of the branches that were left out.
    """

    numbers: Tensor
    dropped: Tensor

    @property
    def mass(self) -> Tensor:
        """`(U,)` probability of any canonical answer; the rest goes to other texts and to what was left out."""
        return self.numbers.exp().sum(dim=1)


def from_prefix(model: Any, prefix: Prefix, tree: AnswerTree) -> Tensor:
    """Log-probabilities `(U, N)` from encoded prompts; gradients flow if they flow through the prefix.

    Args:
        model: any wrapper of the model that `encode` ran.
        prefix: U prompts; it stays as it is.
    """
    tokens, positions, sees = _suffix(tree, prefix.next_position, len(prefix.mask))
    with _hidden_states(model) as head:
        out = model(
            input_ids=tokens,
            attention_mask=attention_mask_for(model, suffix_visibility(prefix.mask, sees)),
            position_ids=positions,
            past_key_values=prefix.fork(),
            use_cache=True,
        )
        edges = torch.cat(
            [
                _edges_of_first(prefix.logits, tree),
                _edge_log_probs(head, out.logits, *_edges_behind_the_first(tree, out.logits.device)),
            ],
            dim=1,
        )
    return _along_paths(edges, tree)


def from_prompts(model: Any, prompt_ids: Tensor, mask: Tensor, fields: dict[str, Tensor], tree: AnswerTree) -> Tensor:
    """`from_prefix` in one pass from the beginning: keeps no cache, and so works with gradient checkpointing.

    Args:
        prompt_ids, mask: `(U, P)`, padded on the left.
        fields: what the processor gives besides.
    """
    prompt_places, after = prompt_positions(model, prompt_ids, mask, fields)
    tokens, positions, sees = _suffix(tree, after, len(mask))
    length, extra = prompt_ids.shape[1], tree.nodes
    causal = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
    # A padding token sees itself: a row that sees nothing has no softmax.
    prompt_sees = causal & mask[:, None].bool() | torch.eye(length, dtype=torch.bool, device=mask.device)
    visible = torch.cat([pad(prompt_sees, (0, extra)), suffix_visibility(mask, sees)], dim=1)
    with _hidden_states(model) as head:
        out = model(
            input_ids=torch.cat([prompt_ids, tokens], dim=1),
            attention_mask=attention_mask_for(model, visible),
            position_ids=torch.cat([prompt_places, positions], dim=-1),
            use_cache=False,
            logits_to_keep=extra + 1,
            **{name: pad(value, (0, extra)) if name in PER_TOKEN else value for name, value in fields.items()},
        )
        nodes, tokens_of = torch.as_tensor(tree.edge_nodes), torch.as_tensor(tree.edge_tokens)
        edges = _edge_log_probs(head, out.logits, nodes.to(mask.device), tokens_of.to(mask.device))
    return _along_paths(edges, tree)


def one_by_one(
    model: Any, prompt_ids: Tensor, mask: Tensor, fields: dict[str, Tensor], tree: AnswerTree, rows_at_once: int = 64
) -> Tensor:
    """`from_prompts` for models whose prefix cannot be shared: every number in a row of its own, N times the work.

    Args:
        rows_at_once: prompts with a number each in one forward pass.
    """
    inputs, length = len(prompt_ids), tree.paths.shape[1]
    known = torch.as_tensor(tree.paths < len(tree.edge_nodes), device=mask.device)
    numbers = torch.as_tensor(np.append(tree.edge_tokens, 0)[tree.paths], device=mask.device)
    owners = torch.arange(inputs, device=mask.device).repeat_interleave(len(numbers))
    answers = torch.arange(len(numbers), device=mask.device).repeat(inputs)
    found = []
    for start in range(0, len(owners), rows_at_once):
        rows, wanted = owners[start : start + rows_at_once], answers[start : start + rows_at_once]
        own = select(fields, rows)
        logits = model(
            input_ids=torch.cat([prompt_ids[rows], numbers[wanted]], dim=1),
            attention_mask=torch.cat([mask[rows], known[wanted].to(mask.dtype)], dim=1),
            use_cache=False,
            logits_to_keep=length + 1,
            **{name: pad(value, (0, length)) if name in PER_TOKEN else value for name, value in own.items()},
        ).logits[:, :-1]
        scores = logits.float().log_softmax(dim=-1).gather(2, numbers[wanted][..., None])[..., 0]
        found.append(torch.where(known[wanted], scores, 0.0).sum(dim=1))
    return torch.cat(found).view(inputs, -1)


@torch.no_grad()
def level_by_level(model: Any, prefix: Prefix, tree: AnswerTree, floor: float = 1e-6) -> LogProbs:
    """Log-probabilities without gradients: a level of the tree at a time, without each image's unlikely branches.

    Time and memory grow with the branches that the images keep, not with the tree.

    Args:
        floor: a branch whose probability is below is left out; 0 keeps all of them.
    """
    walk = _Walk(prefix, tree)
    while walk.next_level(floor):
        with _hidden_states(model) as head:
            out = model(
                input_ids=walk.tokens[walk.level],
                attention_mask=attention_mask_for(model, walk.visible()),
                position_ids=prefix.next_position[..., None] + walk.depth - 1 + torch.zeros_like(walk.level),
                past_key_values=walk.cache,
                use_cache=True,
            )
            walk.take(head, out.logits)
    return LogProbs(_along_paths(walk.edges[:, :-1], tree), walk.dropped)


class _Walk:
    """The way down the tree, for U images at once. A level holds K nodes per image; 0 stands for an empty place.

    Attributes:
        depth: of the current level.
        level: `(U, K)` nodes of the current level.
        cached: `(U, M)` nodes whose keys and values are in `cache`, the current level included.
        edges: `(U, E + 1)` log-probabilities so far; -inf where unknown.
        dropped: `(U,)` probability of the branches that were left out.
    """

    def __init__(self, prefix: Prefix, tree: AnswerTree) -> None:
        device, inputs = prefix.mask.device, len(prefix.mask)
        self.prefix, self.cache, self.depth = prefix, prefix.fork(), 0
        self.tokens, self.parents, self.depths, self.ancestors, self.entries, self.children, self.edge_tokens = (
            torch.as_tensor(array, device=device)
            for array in (
                tree.tokens, tree.parents, tree.depths, tree.ancestors, tree.entries, tree.children,
                np.append(tree.edge_tokens, 0),
            )
        )  # fmt: skip
        self.edges = torch.full((inputs, len(tree.edge_nodes) + 1), -torch.inf, device=device)
        self.edges[:, : int((tree.edge_nodes == 0).sum())] = _edges_of_first(prefix.logits, tree)
        self.reach = torch.full((inputs, len(tree.tokens)), -torch.inf, device=device)
        self.reach[:, 0] = 0
        self.level = torch.zeros(inputs, 0, dtype=torch.long, device=device)
        self.cached = self.level
        self.dropped = torch.zeros(inputs, device=device)

    def next_level(self, floor: float) -> bool:
        """Goes a level down to the nodes that are likely enough; False if there are none."""
        self.depth += 1
        nodes = (self.depths == self.depth).nonzero()[:, 0]
        reach = self.reach[:, self.parents[nodes]] + self.edges[:, self.entries[nodes]]
        keep = (reach.exp() >= floor) & reach.isfinite()
        self.dropped += torch.where(keep, 0.0, reach.exp()).sum(dim=1)
        self.reach[:, nodes] = torch.where(keep, reach, -torch.inf)
        width = int(keep.sum(dim=1).max()) if len(nodes) else 0
        order = keep.int().argsort(dim=1, descending=True, stable=True)[:, :width]
        self.level = torch.where(keep.gather(1, order), nodes[order], 0) if width else self.level[:, :0]
        self.cached = torch.cat([self.cached, self.level], dim=1)
        return width > 0

    def visible(self) -> Tensor:
        """`(U, K, P + M)`: each node sees the prompt, its ancestors and itself."""
        own = self.ancestors[self.level].gather(
            2, self.depths[self.cached][:, None].expand(-1, self.level.shape[1], -1)
        )
        seen = (own == self.cached[:, None]) & (self.cached[:, None] > 0)
        prompt = self.prefix.mask[:, None].bool().expand(-1, self.level.shape[1], -1)
        return torch.cat([prompt, seen], dim=2)

    def take(self, head: Any, hidden: Tensor) -> None:
        """Adds the log-probabilities of the edges that leave the level's nodes; `hidden` is `(U, K, H)`."""
        leaving = self.children[self.level]  # (U, K, C)
        step = _nodes_at_once(head, hidden)
        for start in range(0, hidden.shape[1], step):
            logits = type(head).forward(head, hidden[:, start : start + step]).float()
            edges = leaving[:, start : start + step]
            scores = logits.gather(2, self.edge_tokens[edges]) - logits.logsumexp(dim=2, keepdim=True)
            empty = (self.level[:, start : start + step] == 0)[..., None]
            target = torch.where(empty, self.edges.shape[1] - 1, edges).flatten(1)
            self.edges.scatter_(1, target, scores.flatten(1))


def _suffix(tree: AnswerTree, after: Tensor, inputs: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens `(U, T)`, positions `(..., U, T)` and visibility `(T, T)` of the inner nodes."""
    device = after.device
    tokens = torch.as_tensor(tree.tokens[1:], device=device).expand(inputs, -1)
    positions = after[..., None] + torch.as_tensor(tree.depths[1:] - 1, device=device)
    return tokens, positions, torch.as_tensor(tree.sees, device=device)


@contextmanager
def _hidden_states(model: Any) -> Iterator[Any]:
    """Within, the model returns the hidden states in place of logits; yields its head.

    Wrappers (LoRA, DDP, autocast) stay in use, since the model is still called through them.
    """
    head = getattr(model, "module", model).get_output_embeddings()
    head.forward = lambda hidden: hidden
    try:
        yield head
    finally:
        del head.forward


def _edge_log_probs(head: Any, hidden: Tensor, places: Tensor, tokens: Tensor) -> Tensor:
    """Log-probability `(U, E)` of each edge over the whole vocabulary, in float32.

    Args:
        hidden: `(U, T, H)`.
        places: `(E,)` row of `hidden` that each edge leaves from, in ascending order.
        tokens: `(E,)`.
    """

    def block(states: Tensor, rows: Tensor, wanted: Tensor) -> Tensor:
        logits = type(head).forward(head, states).float()
        return logits[:, rows, wanted] - logits.logsumexp(dim=-1)[:, rows]

    step = _nodes_at_once(head, hidden)
    parts = []
    for start in range(0, hidden.shape[1], step):
        members = (places >= start) & (places < start + step)
        if members.any():
            states, rows, wanted = hidden[:, start : start + step], places[members] - start, tokens[members]
            if torch.is_grad_enabled() and hidden.requires_grad:
                parts.append(checkpoint(block, states, rows, wanted, use_reentrant=False))
            else:
                parts.append(block(states, rows, wanted))
    return torch.cat(parts, dim=1)


def _nodes_at_once(head: Any, hidden: Tensor) -> int:
    """Nodes whose logits fit into LOGIT_BYTES."""
    return max(int(LOGIT_BYTES / (4 * head.weight.shape[0] * len(hidden))), 1)


def _edges_of_first(logits: Tensor, tree: AnswerTree) -> Tensor:
    """Log-probabilities `(U, E0)` of the edges of node 0, from the logits `(U, V)` at the end of the prompt."""
    tokens = torch.as_tensor(tree.edge_tokens[tree.edge_nodes == 0], device=logits.device)
    return logits.float().log_softmax(dim=-1)[:, tokens]


def _edges_behind_the_first(tree: AnswerTree, device: torch.device) -> tuple[Tensor, Tensor]:
    """Position among the inner nodes, and token, of the edges of all inner nodes."""
    members = tree.edge_nodes > 0
    return (
        torch.as_tensor(tree.edge_nodes[members] - 1, device=device),
        torch.as_tensor(tree.edge_tokens[members], device=device),
    )


def _along_paths(edges: Tensor, tree: AnswerTree) -> Tensor:
    """Sums `(U, N)` of the edges' log-probabilities along each number's path."""
    padded = pad(edges, (0, 1))
    return padded[:, torch.as_tensor(tree.paths, device=edges.device)].sum(dim=-1)
