"""Masks secrets in text that is printed or stored."""

import os
import re
from collections.abc import Mapping
from typing import Any

_PASSWORD = re.compile(r"(?<=://)([^/@\s]*?):[^/\s]*@")
_TOKEN = re.compile(r"([?&][^=&\s]*(?:password|passwd|pwd|secret|token|key|signature)[^=&\s]*=)[^&\s]+", re.IGNORECASE)
# Environment variables whose values are masked.
_SECRET_VARIABLES = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "HF_TOKEN",
    "KF_PIPELINES_COOKIE",
    "KF_PIPELINES_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
)


def masked(text: str) -> str:
    """`text` with `***` in place of passwords and tokens in URIs and of secrets from the environment."""
    text = _masked_uris(text)
    for name in _SECRET_VARIABLES:
        if secret := os.environ.get(name):
            text = text.replace(secret, "***")
    return text


def masked_json(content: Any) -> Any:
    """JSON content with `***` in place of passwords and tokens in URIs, in every string value.

    Keys are unchanged. Secrets from the environment are not masked, so that the result is the same on every machine:
    a password `test` must not change `max_test_rows`. Use it to compare content; to print text, use `masked`.
    """
    if isinstance(content, Mapping):
        return {key: masked_json(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [masked_json(value) for value in content]
    return _masked_uris(content) if isinstance(content, str) else content


def _masked_uris(text: str) -> str:
    return _TOKEN.sub(r"\1***", _PASSWORD.sub(r"\1:***@", text))
