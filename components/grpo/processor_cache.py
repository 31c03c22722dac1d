"""The processor once per input and step: the G copies of a picture and its prompt are templated, tokenized and resized
once.

TRL hands the processor every copy, twice a step: as messages before sampling, and as text before the log-probs.
"""

from typing import Any

from torch import Tensor
from transformers import BatchFeature

from components.grpo.shared_prefix import PER_TOKEN, select


class OncePerInput:
    """Stands in for a processor while TRL prepares a batch whose rows belong to fewer inputs.

    Attributes:
        batch: what the processor gave, a row an input, padded on the left; None before it was asked.
    """

    batch: BatchFeature | None = None

    def __init__(self, processor: Any, first: Tensor, owners: Tensor) -> None:
        """Takes the processor's place for one batch.

        Args:
            first: `(U,)` the first row of each input.
            owners: `(N,)` the input of each row.
        """
        self._processor = processor
        self._first, self._owners = first.tolist(), owners.cpu()

    def __getattr__(self, name: str) -> Any:
        """Whatever else the processor has."""
        return getattr(self._processor, name)

    def apply_chat_template(self, conversation: Any, tokenize: bool = False, **kwargs: Any) -> Any:
        """The whole batch as token ids and fields; asked for text alone, nothing, since the batch stands already."""
        if not tokenize:
            return ""
        once = [conversation[row] for row in self._first]
        kwargs = {**kwargs, "padding": True, "return_tensors": "pt"}
        self.batch = self._processor.apply_chat_template(conversation=once, tokenize=True, **kwargs)
        rows = {**self.batch}
        mask = rows.pop("attention_mask").bool()
        for name in {"input_ids", *PER_TOKEN} & rows.keys():
            rows[name] = [row[keep].tolist() for row, keep in zip(rows[name], mask, strict=True)]
        return BatchFeature(select(rows, self._owners))

    def __call__(self, images: Any, text: Any, **kwargs: Any) -> Any:
        """The batch as tensors, padded on the left."""
        if self.batch is None:
            return self._processor(images=images, text=text, **kwargs)
        return BatchFeature(select(dict(self.batch), self._owners))
