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
from transformers import DynamicCache

from components.shared.model.answer_tree import AnswerTree
from components.shared.model.shared_prefix import (
    Prefix,
    attention_mask_for,
    fork,
    forward_after,
    forward_whole,
    pad_fields,
    select,
)

LOGIT_BYTES = 2**27  # of one block of logits in float32
VISIBLE_CELLS = 2**25  # of one pass: its nodes times all tokens that they may attend to; some 10 bytes each


@dataclass(frozen=True)
class LogProbs:
    """Log-probabilities of all numbers.

    Attributes:
        numbers: `(U, N)`; -inf for numbers below a branch that was left out.
        dropped: `(U,)` probability of the branches that were left out.
        nodes: `(U,)` number of inner nodes that were not.
    """

    numbers: Tensor
    dropped: Tensor
    nodes: Tensor

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
    with _hidden_states(model) as head:
        hidden = forward_after(model, prefix, *_suffix(tree, prefix.mask))
        later = _edge_log_probs(head, hidden, *_edges_from(tree, 1, hidden.device))
    return _along_paths(torch.cat([_edges_of_first(prefix.logits, tree), later], dim=1), tree)


def from_prompts(model: Any, prompt_ids: Tensor, mask: Tensor, fields: dict[str, Tensor], tree: AnswerTree) -> Tensor:
    """`from_prefix` in one pass from the beginning: keeps no cache, and so works with gradient checkpointing.

    Args:
        prompt_ids, mask: `(U, P)`, padded on the left.
        fields: what the processor gives besides.
    """
    with _hidden_states(model) as head:
        hidden = forward_whole(model, prompt_ids, mask, fields, *_suffix(tree, mask))
        edges = _edge_log_probs(head, hidden, *_edges_from(tree, 0, hidden.device))
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
        logits = model(
            input_ids=torch.cat([prompt_ids[rows], numbers[wanted]], dim=1),
            attention_mask=torch.cat([mask[rows], known[wanted].to(mask.dtype)], dim=1),
            use_cache=False,
            logits_to_keep=length + 1,
            **pad_fields(select(fields, rows), length),
        ).logits[:, :-1]
        scores = logits.float().log_softmax(dim=-1).gather(2, numbers[wanted][..., None])[..., 0]
        found.append(torch.where(known[wanted], scores, 0.0).sum(dim=1))
    return torch.cat(found).view(inputs, -1)


@torch.no_grad()
def level_by_level(model: Any, prefix: Prefix, tree: AnswerTree, floor: float = 1e-6) -> LogProbs:
    """Log-probabilities without gradients: a level of the tree at a time, without each image's unlikely branches.

    Time grows with the branches that the images keep, not with the tree. Memory: blocks of logits and masks of about
    half a gigabyte together, whatever the tree, and keys and values of the kept nodes above the deepest level.

    Args:
        floor: a branch whose probability is below is left out; 0 keeps all of them.
    """
    walk = _Walk(prefix, tree)
    while walk.next_level(floor):
        for nodes in walk.level.split(walk.nodes_at_once(), dim=1):
            cache, cached = walk.cache_with(nodes)
            with _hidden_states(model) as head:
                out = model(
                    input_ids=walk.tokens[nodes],
                    attention_mask=attention_mask_for(model, walk.visible(nodes, cached)),
                    position_ids=prefix.next_position[..., None] + walk.depth - 1 + torch.zeros_like(nodes),
                    past_key_values=cache,
                    use_cache=True,
                )
                walk.take(head, out.logits, nodes)
    kept = walk.reach[:, 1:].isfinite().sum(dim=1)
    return LogProbs(_along_paths(walk.edges[:, :-1], tree), walk.dropped, kept)


class _Walk:
    """The way down the tree, for U images at once. A level holds K nodes per image; 0 stands for an empty place.

    Attributes:
        depth: of the current level.
        level: `(U, K)` nodes of the current level.
        cached: `(U, M)` nodes whose keys and values are in `cache`.
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
        return width > 0

    def nodes_at_once(self) -> int:
        """Nodes of the level whose mask fits into VISIBLE_CELLS."""
        tokens = self.prefix.mask.shape[1] + self.cached.shape[1] + self.level.shape[1]
        return max(VISIBLE_CELLS // (tokens * len(self.level)), 1)

    def cache_with(self, nodes: Tensor) -> tuple[DynamicCache, Tensor]:
        """The cache that will hold these nodes of the level, and all nodes in it then, `(U, M)`.

        Nodes of the deepest level are forgotten again, since nothing attends to them.
        """
        cached = torch.cat([self.cached, nodes], dim=1)
        if self.depth == int(self.depths.max()):
            return fork(self.cache), cached
        self.cached = cached
        return self.cache, cached

    def visible(self, nodes: Tensor, cached: Tensor) -> Tensor:
        """`(U, K, P + M)`: each of the K nodes sees the prompt, its ancestors and itself among the M cached nodes."""
        own = self.ancestors[nodes].gather(2, self.depths[cached][:, None].expand(-1, nodes.shape[1], -1))
        seen = (own == cached[:, None]) & (cached[:, None] > 0)
        prompt = self.prefix.mask[:, None].bool().expand(-1, nodes.shape[1], -1)
        return torch.cat([prompt, seen], dim=2)

    def take(self, head: Any, hidden: Tensor, nodes: Tensor) -> None:
        """Adds the log-probabilities of the edges that leave these nodes of the level; `hidden` is `(U, K, H)`."""
        leaving = self.children[nodes]  # (U, K, C)
        step = _nodes_at_once(head, hidden)
        for start in range(0, hidden.shape[1], step):
            logits = type(head).forward(head, hidden[:, start : start + step]).float()
            edges = leaving[:, start : start + step]
            scores = logits.gather(2, self.edge_tokens[edges]) - logits.logsumexp(dim=2, keepdim=True)
            empty = (nodes[:, start : start + step] == 0)[..., None]
            target = torch.where(empty, self.edges.shape[1] - 1, edges).flatten(1)
            self.edges.scatter_(1, target, scores.flatten(1))


def _suffix(tree: AnswerTree, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens `(U, T)`, offsets `(T,)` and visibility `(T, T)` of the inner nodes, for prompts with this mask."""
    tokens, offsets, sees = (
        torch.as_tensor(array, device=mask.device) for array in (tree.tokens[1:], tree.depths[1:] - 1, tree.sees)
    )
    return tokens.expand(len(mask), -1), offsets, sees


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


def _edges_from(tree: AnswerTree, first: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Row and token of each edge that leaves node `first` or a later one, if row 0 stands for node `first`."""
    members = tree.edge_nodes >= first
    return (
        torch.as_tensor(tree.edge_nodes[members] - first, device=device),
        torch.as_tensor(tree.edge_tokens[members], device=device),
    )


def _along_paths(edges: Tensor, tree: AnswerTree) -> Tensor:
    """Sums `(U, N)` of the edges' log-probabilities along each number's path."""
    padded = pad(edges, (0, 1))
    return padded[:, torch.as_tensor(tree.paths, device=edges.device)].sum(dim=-1)
