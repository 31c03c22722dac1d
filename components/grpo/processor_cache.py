"""Runs the processor once per input and step, although a batch has one row per completion.

TRL passes every row to the processor, twice a step: as messages before sampling, and as text before the log-probs.
"""

from typing import Any

from transformers import BatchFeature

from components.grpo.rollout_batch import RolloutBatch
from components.shared.model.shared_prefix import PER_TOKEN, select


class ProcessorCache:
    """A processor whose output for a rollout is computed once per input, stored in the rollout, and then copied."""

    def __init__(self, processor: Any, rollout: RolloutBatch) -> None:
        """Wraps `processor` for one rollout; whatever it does not cache goes to the processor."""
        self._processor, self._rollout = processor, rollout

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)

    def apply_chat_template(self, conversation: Any, tokenize: bool = False, **kwargs: Any) -> Any:
        """Returns the batch as lists of token ids and fields of the images, one row per completion.

        Without `tokenize`, TRL wants the text only to pass it to `__call__`, which does not need it: returns "".
        """
        if not tokenize:
            return ""
        first, owners = self._rollout.first_rows()
        inputs = [conversation[row] for row in first.tolist()]
        kwargs = {**kwargs, "padding": True, "return_tensors": "pt"}
        self._rollout.processed = self._processor.apply_chat_template(conversation=inputs, tokenize=True, **kwargs)
        rows = {**self._rollout.processed}
        mask = rows.pop("attention_mask").bool()
        for name in {"input_ids", *PER_TOKEN} & rows.keys():
            rows[name] = [row[keep].tolist() for row, keep in zip(rows[name], mask, strict=True)]
        return BatchFeature(select(rows, owners.cpu()))

    def __call__(self, images: Any, text: Any, **kwargs: Any) -> Any:
        """Returns the batch as tensors padded on the left, one row per completion."""
        if self._rollout.processed is None:
            return self._processor(images=images, text=text, **kwargs)
        _, owners = self._rollout.first_rows()
        return BatchFeature(select(dict(self._rollout.processed), owners.cpu()))
