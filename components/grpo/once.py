"""The processor once per input: the G copies of a picture and its prompt are templated, tokenized and resized once.

TRL hands the processor every copy, twice a step: before sampling and before the log-probs.
"""

import json
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature

from components.shared.vlm.shared_prefix import select


class OncePerInput:
    """Stands in for a processor while TRL prepares a batch whose rows belong to fewer inputs."""

    def __init__(self, processor: Any, first: Tensor, owners: Tensor) -> None:
        """Takes the processor's place for one batch.

        Args:
            first: `(U,)` the first row of each input.
            owners: `(N,)` the input of each row.
        """
        self._processor = processor
        self._first, self._owners = first.tolist(), owners.cpu()
        self._texts: dict[str, str] = {}

    def __getattr__(self, name: str) -> Any:
        """Whatever else the processor has."""
        return getattr(self._processor, name)

    def apply_chat_template(self, conversation: Any, tokenize: bool = False, **kwargs: Any) -> Any:
        """A prompt as text, once for each wording; or the whole batch as token ids and fields, once for each input."""
        if tokenize:
            once = [conversation[row] for row in self._first]
            return self._spread(self._processor.apply_chat_template(conversation=once, tokenize=True, **kwargs))
        wording = json.dumps([conversation, sorted(kwargs)], default=lambda _: "picture")
        if wording not in self._texts:
            self._texts[wording] = self._processor.apply_chat_template(conversation, tokenize=False, **kwargs)
        return self._texts[wording]

    def __call__(self, images: Any, text: list[str], **kwargs: Any) -> Any:
        """The batch as tensors, once for each input."""
        once = {"images": [images[row] for row in self._first], "text": [text[row] for row in self._first]}
        return self._spread(self._processor(**once, **kwargs))

    def _spread(self, once: Any) -> BatchFeature:
        return BatchFeature(select(dict(once), torch.as_tensor(self._owners)))
