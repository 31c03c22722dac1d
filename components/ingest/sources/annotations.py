"""Annotations in the form of the paper's release (Du, Song and Li, arXiv 2605.01402): JSON lines or a JSON list.

Training rows are conversations, test rows a problem and its solution; either is read from either kind of file:

    {"id": 0, "image": "images/a.jpg", "conversations": [{"from": "human", "value": "<image>How old?"},
                                                         {"from": "gpt", "value": "<answer> 35 </answer>"}]}
    {"image": "images/a.jpg", "problem": "How old?", "solution": 35}

The answer is a number, bare or in tags.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.errors import ConcordError
from components.ingest.quarantine import BadValueError, Faults
from components.ingest.sources.labels import parse_target

_TAGGED = re.compile(r"\s*<answer>(.*)</answer>\s*", re.DOTALL)
_ASKED, _ANSWERED = ("human", "user"), ("gpt", "assistant")


@dataclass(frozen=True, slots=True)
class Annotation:
    """One annotated image.

    Attributes:
        image: its path, as it stands there; empty where it stands beside the image.
        question: without the image's placeholder.
        target: finite.
        line: line of the file on which it begins.
    """

    image: str
    question: str
    target: float
    line: int


def read_annotations(path: Path, faults: Faults) -> Iterator[Annotation | None]:
    """The annotations of a file, in its order: None for one that has a fault, which goes to `faults`.

    Raises:
        ConcordError: the file cannot be read, is not UTF-8, or is no JSON list that could be read on.
    """
    for line, value in _values(path):
        yield annotation(value, line, faults)


def annotation(value: object, line: int, faults: Faults, beside: bool = False) -> Annotation | None:
    """One annotation, or None where it has a fault.

    Args:
        value: what JSON made of it, or the error.
        line: where it begins.
        faults: gets what is wrong, all of it.
        beside: it stands beside its image and need not name it.
    """
    if not isinstance(value, dict):
        bad = value if isinstance(value, BadValueError) else BadValueError("no annotation", "write {...}, an object")
        faults.add(line, None, None, bad)
        return None
    before = faults.count

    def part(column: str, parse: Callable[[dict[str, Any]], Any]) -> Any:
        try:
            return parse(value)
        except BadValueError as bad:
            faults.add(line, column, _text(value.get(column)), bad)
            return None

    image = "" if beside else part("image", _image)
    if "conversations" in value:
        question = part("conversations", lambda row: _said(row, _ASKED))
        target = part("conversations", lambda row: answer(_said(row, _ANSWERED)))
    else:
        question, target = part("problem", _problem), part("solution", lambda row: answer(row.get("solution")))
    if faults.count > before:
        return None
    return Annotation(image, question.replace("<image>", "").strip(), target, line)


def answer(value: object) -> float:
    """The number that is the answer: 35, "35" or "<answer> 35 </answer>".

    Raises:
        BadValueError: it is no finite number.
    """
    if isinstance(value, str):
        tagged = _TAGGED.fullmatch(value)
        return parse_target(tagged[1] if tagged else value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadValueError("no answer", "write the number, bare or as <answer> 35 </answer>")
    return parse_target(repr(value))


def _image(row: dict[str, Any]) -> str:
    image = row.get("image")
    if isinstance(image, list) and len(image) == 1:
        image = image[0]
    if not isinstance(image, str) or not image.strip():
        raise BadValueError("no image", "name one file, as text")
    return image


def _problem(row: dict[str, Any]) -> str:
    problem = row.get("problem")
    if not isinstance(problem, str):
        raise BadValueError("no question", "give conversations, or problem and solution")
    return problem


def _said(row: dict[str, Any], speakers: tuple[str, ...]) -> str:
    turns = row["conversations"]
    for turn in turns if isinstance(turns, list) else []:
        if isinstance(turn, dict) and turn.get("from") in speakers and isinstance(turn.get("value"), str):
            said: str = turn["value"]
            return said
    raise BadValueError("no such turn", f'it needs {{"from": "{speakers[0]}", "value": "..."}}')


def _text(value: object) -> str | None:
    return None if value is None else value if isinstance(value, str) else json.dumps(value)


def _values(path: Path) -> Iterator[tuple[int, object]]:
    """Line and value, or line and what is wrong with it."""
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
        yield from _elements(path, text)
        return
    for number, line_text in enumerate(text.split("\n"), start=1):
        if line_text.strip():
            yield number, parse_json(line_text)


def parse_json(text: str) -> object:
    """The value, or a BadValueError that says what is wrong with the text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        return BadValueError("not JSON", f"{_words(error)}: write one object a line, or a list")


def _elements(path: Path, text: str) -> Iterator[tuple[int, object]]:
    """Of a JSON list, one by one, so that each is known by its line."""
    decoder, space = json.JSONDecoder(), re.compile(r"[ \t\r\n]*")

    def skip(at: int) -> int:
        return space.match(text, at).end()  # type: ignore[union-attr]  # it matches nothing, too

    line, counted = 1, 0
    at = skip(text.index("[") + 1)
    while text[at : at + 1] != "]":
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise ConcordError(f"{path}:{line}: not JSON ({_words(error)}). Mend or get it anew.") from None
        yield line, value
        at = skip(at)
        if text[at : at + 1] == ",":
            at = skip(at + 1)
        elif text[at : at + 1] != "]":
            raise ConcordError(f"{path}: the list that begins there has no end. Mend it or get it anew.")
    if rest := text[at + 1 :].strip():
        raise ConcordError(f"{path}: {rest[:20]!r} stands behind the end of the list. Mend it or get it anew.")


def _words(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)[:80]
