"""Files of settings: every kind of mistake is reported with its file and key. The same for params.yaml and clusters."""

import types
import typing
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from tests.support.settings_files import CLUSTER, PARAMS, SettingsFile, keys, section

KEYS = {(file.name, path): annotation for file in (PARAMS, CLUSTER) for path, annotation in keys(file.kind)}
EACH = pytest.mark.parametrize(
    ("file", "path"),
    [({"params.yaml": PARAMS, "cluster.yaml": CLUSTER}[name], path) for name, path in KEYS],
    ids=[f"{name}-{'.'.join(path)}" for name, path in KEYS],
)


@EACH
def test_a_missing_key_is_named(file: SettingsFile, path: tuple[str, ...], tmp_path: Path) -> None:
    raw = file.full()
    del section(raw, path)[path[-1]]
    assert (
        f"{file.name}: {'.'.join(path)}: missing; every setting is written out, add it"
        in file.message(raw, tmp_path).splitlines()
    )


@EACH
def test_a_mistyped_key_is_named_with_the_right_one(file: SettingsFile, path: tuple[str, ...], tmp_path: Path) -> None:
    raw = file.full()
    holder = section(raw, path)
    wrong = f"{path[-1]}x"
    holder[wrong] = holder.pop(path[-1])
    expected = f"{file.name}: {'.'.join((*path[:-1], wrong))}: unknown key, did you mean {path[-1]}?"
    assert expected in file.message(raw, tmp_path).splitlines()


def is_of(value: Any, annotation: Any) -> bool:
    """Whether the value has the type that the annotation names (a whole number has a float's)."""
    union = typing.get_origin(annotation) in (types.UnionType, typing.Union)
    parts = typing.get_args(annotation) if union else (annotation,)
    for part in parts:
        kind = typing.get_origin(part) or part
        if kind is typing.Literal or (kind is typing.Annotated and is_of(value, typing.get_args(part)[0])):
            return isinstance(value, str) if kind is typing.Literal else True
        if kind is float and type(value) is int:
            return True
        if isinstance(kind, type) and (type(value) is kind or (issubclass(kind, BaseModel) and type(value) is dict)):
            return True
    return False


@EACH
def test_a_wrong_type_is_named_with_its_value(file: SettingsFile, path: tuple[str, ...], tmp_path: Path) -> None:
    key, wrong = (
        ".".join(path),
        [v for v in ("red", True, [1], {"a": 1}, None, 1.5, 3) if not is_of(v, KEYS[file.name, path])],
    )
    assert len(wrong) >= 3
    for value in wrong:
        raw = file.full()
        section(raw, path)[path[-1]] = value
        lines = [line for line in file.message(raw, tmp_path).splitlines() if line.startswith(f"{file.name}: {key}")]
        assert any(repr(value) in line for line in lines), f"{key} with {value!r} is reported as {lines}"


def attribute(holder: BaseModel, key: str) -> str:
    """The name of the attribute that has this key in the file."""
    return next(name for name, field in type(holder).model_fields.items() if key in (name, field.alias))


@EACH
def test_nothing_can_be_changed_after_loading(file: SettingsFile, path: tuple[str, ...]) -> None:
    holder: Any = file.kind.model_validate(file.full())
    for part in path[:-1]:
        holder = getattr(holder, attribute(holder, part))
    name = attribute(holder, path[-1])
    with pytest.raises(ValidationError, match="frozen"):
        setattr(holder, name, getattr(holder, name))
