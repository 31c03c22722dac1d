"""What the model is asked, and what it is to answer: the published prompt as chat messages."""

from typing import Any

from components.settings import Task
from components.shared.regression.answers import format_answer

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
