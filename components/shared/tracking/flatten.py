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
