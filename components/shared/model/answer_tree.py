"""The tree of all numbers of a task, as the model's own tokens.

Each number is the token sequence that SFT teaches for it: the chat template's completion with `<answer> 35 </answer>`.
Their common beginnings form a tree. A number ends with the token in which its closing tag begins: that token tells 1
from 12, and what follows it is not part of the number.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.errors import ConcordError
from components.settings import Task
from components.shared.model.prompts import completion_text
from components.shared.scoring.answers import format_answer
from components.shared.scoring.errors import Array

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class AnswerTree:
    """Numbers, nodes and edges. Node 0 is the end of the prompt; nodes are ordered by depth.

    Attributes:
        values: `(N,)` the numbers in ascending order.
        tokens: `(T + 1,)` token of each inner node; that of node 0 means nothing.
        parents: `(T + 1,)` node before each inner node; -1 for node 0.
        depths: `(T + 1,)` tokens from the end of the prompt; 0 for node 0.
        edge_nodes: `(E,)` node whose logits give the probability of each edge, in ascending order.
        edge_tokens: `(E,)` token of each edge.
        paths: `(N, L)` edges of each number from the prompt on, padded with E.
    """

    values: Array
    tokens: Ints
    parents: Ints
    depths: Ints
    edge_nodes: Ints
    edge_tokens: Ints
    paths: Ints

    @property
    def nodes(self) -> int:
        """T: inner nodes, which one pass adds to the prompt."""
        return len(self.tokens) - 1

    @cached_property
    def ancestors(self) -> Ints:
        """`(T + 1, D + 1)`: the node of each depth on the way from the prompt to a node, itself included; else -1."""
        found = np.full((len(self.tokens), int(self.depths.max()) + 1), -1, np.int64)
        for node in range(len(self.tokens)):
            if node:
                found[node] = found[self.parents[node]]
            found[node, self.depths[node]] = node
        return found

    @cached_property
    def sees(self) -> NDArray[np.bool_]:
        """`(T, T)`: whether inner node i + 1 attends to inner node j + 1, itself or one of its ancestors."""
        nodes = np.arange(1, len(self.tokens))
        return np.asarray(self.ancestors[1:][:, self.depths[1:]] == nodes)

    @cached_property
    def entries(self) -> Ints:
        """`(T + 1,)`: the edge that leads to each inner node; E for node 0."""
        edges = {edge: index for index, edge in enumerate(zip(self.edge_nodes, self.edge_tokens, strict=True))}
        inner = zip(self.parents[1:], self.tokens[1:], strict=True)
        return np.array([len(self.edge_nodes), *(edges[edge] for edge in inner)], np.int64)

    @cached_property
    def children(self) -> Ints:
        """`(T + 1, C)`: the edges that leave each node, padded with E."""
        counts = np.bincount(self.edge_nodes, minlength=len(self.tokens))
        starts = np.cumsum(counts) - counts
        columns = np.arange(counts.max())
        return np.where(columns < counts[:, None], starts[:, None] + columns, len(self.edge_nodes)).astype(np.int64)


def answer_tree(processor: Any, task: Task) -> AnswerTree:
    """The tree of all numbers of a task.

    Raises:
        ConcordError: the tokenizer writes two numbers with the same tokens, or cannot say where a number ends.
    """
    values = task_values(task)
    return build_tree(values, canonical_tokens(processor, task, values))


def task_values(task: Task) -> Array:
    """All numbers of a task in ascending order: low, low + resolution, ..., high."""
    steps = int(np.floor((task.high - task.low) / task.resolution + 1e-6))
    return np.asarray(task.low + task.resolution * np.arange(steps + 1), np.float64)


def canonical_tokens(processor: Any, task: Task, values: Array) -> list[list[int]]:
    """Tokens of each number, up to the one in which its closing tag begins.

    They are those that SFT's collator makes of the completion: the chat template is applied, and the completion is
    tokenized apart from the prompt, with all that follows the answer.
    """
    written = completion_text(processor, float(values[0]), task)
    before, _, after = written.partition(format_answer(float(values[0]), task.resolution))
    answers = [format_answer(float(value), task.resolution) for value in values]
    texts = [f"{before}{text}{after}" for text in answers]
    tokenizer = processor.tokenizer
    if not getattr(tokenizer, "is_fast", False):
        raise ConcordError(
            f"{type(tokenizer).__name__}: does not say which characters a token stands for, so the end of a number "
            "cannot be found. Use a model with a fast tokenizer (tokenizer.json)."
        )
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    sequences = []
    for text, ids, offsets in zip(answers, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        closing = len(before) + text.index(" </answer>")  # the first character after the number
        last = next(position for position, (_, stop) in enumerate(offsets) if stop > closing)
        sequences.append(list(ids[: last + 1]))
    return sequences


def build_tree(values: Array, sequences: Sequence[Sequence[int]]) -> AnswerTree:
    """The tree of token sequences, one for each number; none may begin another.

    Raises:
        ConcordError: a sequence is the beginning of another, so that the two numbers cannot be told apart.
    """
    children: list[dict[int, int]] = [{}]  # node -> token -> node
    tokens, parents, depths = [0], [-1], [0]
    prefixes: list[list[int]] = []  # number -> inner nodes on its path, from node 0 on
    for sequence in sequences:
        node, path = 0, [0]
        for token in sequence[:-1]:
            if token not in children[node]:
                children[node][token] = len(tokens)
                children.append({})
                tokens.append(token)
                parents.append(node)
                depths.append(depths[node] + 1)
            node = children[node][token]
            path.append(node)
        prefixes.append(path)
    order = np.argsort(np.array(depths), kind="stable")
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    edges: set[tuple[int, int]] = set()
    taken: dict[tuple[int, int], float] = {}
    for value, sequence, path in zip(values, sequences, prefixes, strict=True):
        last = (path[-1], sequence[-1])
        if last in taken or sequence[-1] in children[path[-1]]:
            other = taken.get(last)
            numbers = f"{value:g} and a longer number begin with" if other is None else f"{other:g} and {value:g} have"
            raise ConcordError(f"{numbers} the same tokens {list(sequence)}; this tokenizer cannot tell them apart.")
        taken[last] = float(value)
        edges |= {(int(rank[node]), int(token)) for node, token in zip(path, sequence, strict=True)}
    listed = sorted(edges)
    place = {edge: index for index, edge in enumerate(listed)}
    length = max(len(sequence) for sequence in sequences)
    paths = np.full((len(values), length), len(listed), np.int64)
    for row, (sequence, path) in enumerate(zip(sequences, prefixes, strict=True)):
        for column, (node, token) in enumerate(zip(path, sequence, strict=True)):
            paths[row, column] = place[int(rank[node]), int(token)]
    moved = np.array(parents)[order]
    return AnswerTree(
        values=np.asarray(values, np.float64),
        tokens=np.array(tokens, np.int64)[order],
        parents=np.where(moved < 0, -1, rank[np.maximum(moved, 0)]).astype(np.int64),
        depths=np.array(depths, np.int64)[order],
        edge_nodes=np.array([node for node, _ in listed], np.int64),
        edge_tokens=np.array([token for _, token in listed], np.int64),
        paths=paths,
    )
