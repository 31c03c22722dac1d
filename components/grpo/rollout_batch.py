"""The state that the trainer's hooks share, from the sampling of completions to the loss on them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature

from components.shared.model.shared_prefix import Prefix


@dataclass
class RolloutBatch:
    """The completions that one rank samples for a step, or one micro-batch of them.

    Attributes:
        owners: `(N,)` the input of each completion, numbered in the order of their first completions.
        processed: the processor's output with one row per input, padded on the left; None until TRL has tokenized.
        prefix: the encoded inputs, kept by sampling for the policy pass; None where that pass encodes them again.
    """

    owners: Tensor
    processed: BatchFeature | None = None
    prefix: Prefix | None = None

    @classmethod
    def of(cls, rows: Sequence[dict[str, Any]], device: torch.device) -> "RolloutBatch":
        """Groups a batch of the data loader, which has one row per completion, by input."""
        numbers: dict[int, int] = {}
        # `presentations` gives the copies of an input the same picture object.
        owners = [numbers.setdefault(id(row["image"]), len(numbers)) for row in rows]
        return cls(torch.tensor(owners, device=device))

    def first_rows(self) -> tuple[Tensor, Tensor]:
        """Returns the first row of each of the U inputs `(U,)`, and the index of each row's input among them `(N,)`."""
        _, index = torch.unique(self.owners, return_inverse=True)
        count = int(index.max()) + 1
        rows = torch.arange(len(self.owners), device=self.owners.device)
        first = torch.full((count,), len(self.owners), device=self.owners.device).scatter_reduce(0, index, rows, "amin")
        return first, index

    def split(self, count: int) -> "list[RolloutBatch]":
        """Splits it into micro-batches of equal size. The prefix covers all inputs, so only a single one keeps it."""
        return [RolloutBatch(owners, prefix=self.prefix if count == 1 else None) for owners in self.owners.chunk(count)]
