"""What the model is asked, and what it is to answer: the published prompt as chat messages."""

from typing import Any

import numpy as np

from components.settings import Task
from components.shared.scoring.answers import format_answer

INSTRUCTION = "Please output the final answer in <answer> </answer> tags."

Messages = list[dict[str, Any]]


def prompt(question: str) -> Messages:
    """The user's turn; the image is put before the text by whoever applies the chat template."""
    return [{"role": "user", "content": f"{question} {INSTRUCTION}"}]


def prompt_with_image(question: str) -> Messages:
    """The same, with the image's place written out, for `apply_chat_template`."""
    text = prompt(question)[0]["content"]
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]


def completion(target: float, task: Task) -> Messages:
    """The assistant's turn that SFT learns."""
    return [{"role": "assistant", "content": format_answer(target, task.resolution)}]


def answer_tokens(processor: Any, task: Task) -> int:
    """Tokens of the longest right answer, with the one that ends it: what greedy decoding needs at most.

    Looks at a thousand labels, evenly spread over the range; a tokenizer may have `100` in one token and `37` in two.
    """
    steps = round((task.high - task.low) / task.resolution)
    labels = task.low + task.resolution * np.linspace(0, steps, min(steps, 1000) + 1).round()
    texts = [format_answer(label, task.resolution) for label in labels]
    return 1 + max(len(ids) for ids in processor.tokenizer(texts, add_special_tokens=False).input_ids)
