"""Secrets are masked in everything that is printed or stored."""

import os
import re
from collections.abc import Mapping
from typing import Any

_PASSWORD = re.compile(r"(?<=://)([^/@\s]*?):[^/\s]*@")
_TOKEN = re.compile(r"([?&][^=&\s]*(?:password|passwd|pwd|secret|token|key|signature)[^=&\s]*=)[^&\s]+", re.IGNORECASE)
# Variables of the environment whose values never appear.
_SECRETS = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "KF_PIPELINES_COOKIE",
    "KF_PIPELINES_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
)


def masked(text: str) -> str:
    """`text` with every password in a URI, and every secret of the environment, as `***`."""
    text = _masked_uris(text)
    for name in _SECRETS:
        if secret := os.environ.get(name):
            text = text.replace(secret, "***")
    return text


def masked_leaves(content: Any) -> Any:
    """JSON content with every password and token in a URI as `***`, wherever a text is a value.

    Keys stay, and so does what the environment calls a secret: the same content gives the same on every machine, and a
    password of `test` is no reason to write `max_test_rows` otherwise. To be compared, not to be printed: see `masked`.
    """
    if isinstance(content, Mapping):
        return {key: masked_leaves(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [masked_leaves(value) for value in content]
    return _masked_uris(content) if isinstance(content, str) else content


def _masked_uris(text: str) -> str:
    return _TOKEN.sub(r"\1***", _PASSWORD.sub(r"\1:***@", text))
