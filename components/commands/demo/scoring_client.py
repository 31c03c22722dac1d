"""Talks to the scoring server (components/commands/serve) over HTTP."""

import base64
import json
import urllib.error
import urllib.request
from typing import Any

TIMEOUT_SECONDS = 70  # the server's own is 60


class ServerError(Exception):
    """The server refused a request or cannot be reached; the message is for the page."""


class ScoringClient:
    """A client of one scoring server."""

    def __init__(self, url: str) -> None:
        """`url`: http://host:port."""
        self.url = url.rstrip("/")

    def model(self) -> dict[str, Any]:
        """What is served: title, question, unit, low, high, statistic, balance, coverage.

        Raises:
            ServerError: see ServerError.
        """
        return self._fetch(urllib.request.Request(f"{self.url}/model"))

    def distribution(self, image: bytes, balance: float) -> dict[str, Any]:
        """What is read off an image; the server's DistributionReader.answer explains the keys.

        Raises:
            ServerError: the image cannot be read; see ServerError.
        """
        content = json.dumps({"image": base64.b64encode(image).decode(), "balance": balance}).encode()
        headers = {"Content-Type": "application/json"}
        return self._fetch(urllib.request.Request(f"{self.url}/distribution", content, headers))

    def _fetch(self, request: urllib.request.Request) -> dict[str, Any]:
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
                found: dict[str, Any] = json.load(answer)
                return found
        except urllib.error.HTTPError as error:
            raise ServerError(_reason(error)) from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise ServerError(f"no scoring server answers at {self.url} ({reason}); start one: make serve") from None


def _reason(error: urllib.error.HTTPError) -> str:
    """The message in an error's body."""
    try:
        return str(json.load(error)["message"])
    except (ValueError, KeyError, TypeError):
        return f"the scoring server answered with status {error.code}; is another program at this address?"
