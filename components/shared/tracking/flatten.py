"""Flattens nested settings and metrics to the dotted keys that MLflow and Kubeflow store."""

from collections.abc import Mapping, Sequence
from typing import Any


def flatten(content: Mapping[str, Any] | Sequence[Any], prefix: str = "") -> dict[str, Any]:
    """Returns the leaves by dotted key: `{"a": {"b": [1, 2]}}` -> `{"a.b.0": 1, "a.b.1": 2}`."""
    pairs = content.items() if isinstance(content, Mapping) else enumerate(content)
    leaves: dict[str, Any] = {}
    for key, value in pairs:
        name = f"{prefix}{key}"
        if isinstance(value, Mapping | list | tuple):
            leaves |= flatten(value, f"{name}.")
        else:
            leaves[name] = value
    return leaves


def split_curves(content: Mapping[str, Any], prefix: str = "") -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Separates lists of mappings, which are curves, from the rest.

    Returns:
        The content without its curves, and the curves by dotted key.
    """
    rest: dict[str, Any] = {}
    curves: dict[str, list[Any]] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            rest[key], inner = split_curves(value, f"{prefix}{key}.")
            curves |= inner
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            curves[f"{prefix}{key}"] = value
        else:
            rest[key] = value
    return rest, curves
