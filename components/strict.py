"""YAML files of settings as strict, frozen types: every error is reported with its file and key."""

import difflib
import math
import re
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from components.errors import ConcordError

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
MAX_REPORTED = 20  # errors in one message


class Strict(BaseModel):
    """No unknown key, no silent conversion, no change after loading. Whole numbers are accepted as floats."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())

    def tree(self) -> dict[str, Any]:
        """The settings as JSON content, under the keys of their file."""
        return self.model_dump(mode="json", by_alias=True)


T = TypeVar("T", bound=Strict)


def read_yaml(path: Path, remedy: str, content: str) -> dict[str, Any]:
    """A YAML mapping.

    Args:
        remedy: what to do where there is no such file.
        content: what the mapping should hold, for the message where it is something else.

    Raises:
        ConcordError: the file is missing, cannot be read, or holds no mapping.
    """
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise ConcordError(f"{path}: no such file. {remedy}") from None
    except OSError as error:
        raise ConcordError(f"{path}: cannot be read ({error.strerror}). {remedy}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConcordError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        raise ConcordError(f"{path}: expected {content}, found {type(raw).__name__}.")
    return raw


def validated(kind: type[T], raw: dict[str, Any], path: Path) -> T:
    """The settings in `raw`, which came from `path`.

    Raises:
        ConcordError: a key or value is wrong.
    """
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        errors = [f"{path}: {_describe(each, kind)}" for each in error.errors()]
        more = [f"and {len(errors) - MAX_REPORTED} more"] if len(errors) > MAX_REPORTED else []
        raise ConcordError("\n".join(errors[:MAX_REPORTED] + more)) from None


class _Loader(yaml.SafeLoader):
    """PyYAML would let the last of two equal keys win without a word, and take 5e-05 for text.

    DVC writes params.yaml for `dvc exp run -S` by YAML 1.2, where 5e-05 is a number.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key.value} stands there twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _describe(error: ErrorDetails, top: type[BaseModel]) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        known = _keys_at(error["loc"][:-1], top)
        close = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known keys: {', '.join(sorted(known))}"
        return f"{key}: unknown key, {hint}"
    if error["type"] == "missing":
        return f"{key}: missing; every setting is written out, add it"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] in ("float_type", "int_type") and _is_number(error["input"]):
        return f"{key}: {error['input']!r} is text; write the number without quotes"
    if error["type"] == "value_error":
        return f"{key}: {message}" if key else message
    return f"{key}: {message[0].lower()}{message[1:]}, found {error['input']!r}"


def _is_number(text: Any) -> bool:
    try:
        return isinstance(text, str) and math.isfinite(float(text))
    except ValueError:
        return False


def _keys_at(location: tuple[int | str, ...], top: type[BaseModel]) -> list[str]:
    """The keys that the section at `location` may have."""
    section = top
    for part in location:
        if isinstance(part, int):  # a place in a list, whose items are of one kind
            continue
        annotation = next(f for name, f in section.model_fields.items() if part in (name, f.alias)).annotation
        options = [annotation, *getattr(annotation, "__args__", ())]
        section = next(o for o in options if isinstance(o, type) and issubclass(o, BaseModel))
    return [field.alias or name for name, field in section.model_fields.items()]
