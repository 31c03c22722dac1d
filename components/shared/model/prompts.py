"""The published prompt and its completion as chat messages."""

from typing import Any

import numpy as np

from components.settings import Task
from components.shared.scoring.answers import format_answer

INSTRUCTION = "Please output the final answer in <answer> </answer> tags."

Messages = list[dict[str, Any]]


def prompt(question: str) -> Messages:
    """The user's message, without the image; TRL inserts the image before the text."""
    return [{"role": "user", "content": f"{question} {INSTRUCTION}"}]


def prompt_with_image(question: str) -> Messages:
    """The user's message with an image entry, for `apply_chat_template`."""
    text = prompt(question)[0]["content"]
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]


def special_token(processor: Any, question: str) -> str | None:
    """The first special token in a question, such as <image> or [IMG], which would not be read as text; else None."""
    tokenizer = processor.tokenizer
    added = (str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
    return next((token for token in (*tokenizer.all_special_tokens, *added) if token in question), None)


def completion(target: float, task: Task) -> Messages:
    """The assistant's message that SFT trains on."""
    return [{"role": "assistant", "content": format_answer(target, task.resolution)}]


def completion_text(processor: Any, target: float, task: Task) -> str:
    """The completion as the chat template writes it, with all that follows the answer: the text that SFT trains on."""
    messages = prompt_with_image(task.question)
    asked = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    answered = processor.apply_chat_template([*messages, *completion(target, task)], tokenize=False)
    same = next((k for k, (a, b) in enumerate(zip(asked, answered, strict=False)) if a != b), len(asked))
    return str(answered[same:])


def max_answer_tokens(processor: Any, task: Task) -> int:
    """Returns the number of tokens of the longest correct answer, including its end token.

    Tokenizes up to a thousand labels spread over the range, since a tokenizer may need one token for `100` and two for
    `37`.
    """
    steps = round((task.high - task.low) / task.resolution)
    labels = task.low + task.resolution * np.linspace(0, steps, min(steps, 1000) + 1).round()
    texts = [format_answer(label, task.resolution) for label in labels]
    return 1 + max(len(ids) for ids in processor.tokenizer(texts, add_special_tokens=False).input_ids)
