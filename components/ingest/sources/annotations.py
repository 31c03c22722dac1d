"""Reads annotations in the format of the paper's release (Du, Song and Li, arXiv 2605.01402): JSON lines or a list.

Training rows are conversations, test rows have a problem and a solution; both are accepted in both kinds of file:

    {"id": 0, "image": "images/a.jpg", "conversations": [{"from": "human", "value": "<image>How old?"},
                                                         {"from": "gpt", "value": "<answer> 35 </answer>"}]}
    {"image": "images/a.jpg", "problem": "How old?", "solution": 35}

The answer is a number, with or without tags.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.errors import ConcordError
from components.ingest.quarantine import BadValueError, TableErrors
from components.ingest.sources.plain_text import check_plain_text
from components.ingest.sources.targets import parse_target

_REMEDY = "Correct the file or download it again."
_TAGGED = re.compile(r"\s*<answer>(.*)</answer>\s*", re.DOTALL)
_USER, _ASSISTANT = ("human", "user"), ("gpt", "assistant")


@dataclass(frozen=True, slots=True)
class Annotation:
    """One annotated image.

    Attributes:
        image: the image's path as written in the annotation; empty for an annotation in a shard.
        question: without the image placeholder.
        target: finite.
        line: line of the file on which the annotation begins.
    """

    image: str
    question: str
    target: float
    line: int


def read_annotations(path: Path, errors: TableErrors) -> Iterator[Annotation | None]:
    """Yields the annotations of a file in order; None for one with errors, which are added to `errors`.

    Raises:
        ConcordError: the file cannot be read, is not UTF-8, or is a malformed JSON list.
    """
    for line, value in _json_values(path):
        yield parse_annotation(value, line, errors)


def parse_annotation(value: object, line: int, errors: TableErrors, in_shard: bool = False) -> Annotation | None:
    """Parses one annotation; returns None if it has errors.

    Args:
        value: the parsed JSON, or the error from parsing it.
        line: line on which the annotation begins.
        errors: every error of the annotation is added to it.
        in_shard: the annotation is in a shard beside its image, so it needs no image path.
    """
    if not isinstance(value, dict):
        bad = value if isinstance(value, BadValueError) else BadValueError("no annotation", "write {...}, an object")
        errors.add(line, None, None, bad)
        return None
    before = errors.count

    def part(column: str, parse: Callable[[dict[str, Any]], Any]) -> Any:
        try:
            return parse(value)
        except BadValueError as bad:
            errors.add(line, column, _text(value.get(column)), bad)
            return None

    image = "" if in_shard else part("image", _image)
    if "conversations" in value:
        question = part("conversations", lambda row: _turn_text(row, _USER))
        target = part("conversations", lambda row: parse_answer(_turn_text(row, _ASSISTANT)))
    else:
        question, target = part("problem", _problem), part("solution", lambda row: parse_answer(row.get("solution")))
    if errors.count > before:
        return None
    return Annotation(image, question.replace("<image>", "").strip(), target, line)


def parse_answer(value: object) -> float:
    """Parses an answer: 35, "35" or "<answer> 35 </answer>".

    Raises:
        BadValueError: the answer is not a finite number.
    """
    if isinstance(value, str):
        tagged = _TAGGED.fullmatch(value)
        return parse_target(tagged[1] if tagged else value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadValueError("no answer", "write a number, such as 35 or <answer> 35 </answer>")
    return parse_target(repr(value))


def _image(row: dict[str, Any]) -> str:
    image = row.get("image")
    if isinstance(image, list) and len(image) == 1:
        image = image[0]
    if not isinstance(image, str) or not image.strip():
        raise BadValueError("no image", "give the path of one file as a string")
    return image


def _problem(row: dict[str, Any]) -> str:
    problem = row.get("problem")
    if not isinstance(problem, str):
        raise BadValueError("no question", "give conversations, or problem and solution")
    return problem


def _turn_text(row: dict[str, Any], roles: tuple[str, ...]) -> str:
    """The text of the first turn of a role."""
    turns = row["conversations"]
    for turn in turns if isinstance(turns, list) else []:
        if isinstance(turn, dict) and turn.get("from") in roles and isinstance(turn.get("value"), str):
            text: str = turn["value"]
            return text
    raise BadValueError("missing turn", f'add {{"from": "{roles[0]}", "value": "..."}}')


def _text(value: object) -> str | None:
    return None if value is None else value if isinstance(value, str) else json.dumps(value)


def _json_values(path: Path) -> Iterator[tuple[int, object]]:
    """Yields line number and value of each element; the value is a BadValueError if it is not JSON."""
    check_plain_text(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConcordError(f"{path}: cannot be read ({error.strerror}). Correct ingest.release.") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConcordError(f"{path}:{line}: not UTF-8 (byte 0x{data[error.start]:02x}). Save it as UTF-8.") from None
    if text.lstrip()[:1] == "[":
        yield from _list_elements(path, text)
        return
    for number, line_text in enumerate(text.split("\n"), start=1):
        if line_text.strip():
            yield number, parse_json(line_text)


def parse_json(text: str) -> object:
    """The parsed value, or a BadValueError that says what is wrong with the text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        return BadValueError("not JSON", f"{_json_error(error)}: write one object per line, or a list")


def _list_elements(path: Path, text: str) -> Iterator[tuple[int, object]]:
    """Yields the elements of a JSON list one by one, each with the line on which it begins."""
    decoder, space = json.JSONDecoder(), re.compile(r"[ \t\r\n]*")

    def skip_space(at: int) -> int:
        return space.match(text, at).end()  # type: ignore[union-attr]  # the pattern also matches an empty string

    line, counted = 1, 0
    at = skip_space(text.index("[") + 1)
    while text[at : at + 1] != "]":
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise ConcordError(f"{path}:{line}: not JSON ({_json_error(error)}). {_REMEDY}") from None
        yield line, value
        at = skip_space(at)
        if text[at : at + 1] == ",":
            at = skip_space(at + 1)
        elif text[at : at + 1] != "]":
            raise ConcordError(f"{path}: the list has no closing bracket. {_REMEDY}")
    if rest := text[at + 1 :].strip():
        raise ConcordError(f"{path}: {rest[:20]!r} follows the end of the list. {_REMEDY}")


def _json_error(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)[:80]
