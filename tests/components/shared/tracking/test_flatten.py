"""Dotted keys of nested content."""

from components.shared.tracking.flatten import flatten


def test_flatten_names_every_leaf() -> None:
    assert flatten({"a": {"b": [1, {"c": None}]}, "d": (2,)}) == {"a.b.0": 1, "a.b.1.c": None, "d.0": 2}
