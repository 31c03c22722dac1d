"""Debian's Chromium, driven by chromedriver over the WebDriver protocol."""

import base64
import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.served import free_port

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the protocol's key of an element's id
WAIT_SECONDS = 30
ARGUMENTS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,900",
    "--hide-scrollbars",
)  # fmt: skip


class Browser:
    """One window."""

    def __init__(self, address: str) -> None:
        """`address`: of a session of chromedriver."""
        self.address = address

    def open(self, url: str) -> None:
        """Loads a page."""
        self._call("/url", {"url": url})

    def script(self, source: str, *arguments: Any) -> Any:
        """Runs JavaScript and returns what it returns."""
        return self._call("/execute/sync", {"script": source, "args": arguments})

    def text(self, css: str) -> str:
        """Text of the first element that matches; empty if there is none."""
        return str(self.script("return document.querySelector(arguments[0])?.textContent ?? ''", css))

    def type(self, css: str, keys: str) -> None:
        """Types into the first element that matches; the path of a file, where it takes a file."""
        element = self._call("/element", {"using": "css selector", "value": css})[ELEMENT]
        self._call(f"/element/{element}/value", {"text": keys})

    def click(self, css: str) -> None:
        """Clicks the first element that matches."""
        element = self._call("/element", {"using": "css selector", "value": css})[ELEMENT]
        self._call(f"/element/{element}/click", {})

    def logs(self, kind: str) -> list[dict[str, Any]]:
        """New entries of one of the browser's logs: browser (the console), performance (the network)."""
        found: list[dict[str, Any]] = self._call("/se/log", {"type": kind})
        return found

    def requested(self) -> set[str]:
        """Addresses that the page tried to load since the last call."""
        messages = [json.loads(entry["message"])["message"] for entry in self.logs("performance")]
        sent = [
            entry["params"]["request"]["url"] for entry in messages if entry["method"] == "Network.requestWillBeSent"
        ]
        return {url for url in sent if not url.startswith(("data:", "blob:"))}

    def screenshot(self, path: Path) -> None:
        """Writes what the window shows as PNG."""
        path.write_bytes(base64.b64decode(self._call("/screenshot", None)))

    def until(self, met: Callable[[], Any]) -> Any:
        """Waits until a condition is met and returns it; fails the test after WAIT_SECONDS."""
        end = time.monotonic() + WAIT_SECONDS
        while not (found := met()):
            assert time.monotonic() < end, self.text("body")
            time.sleep(0.1)
        return found

    def _call(self, path: str, content: Any) -> Any:
        return _request(self.address + path, content)


def _request(url: str, content: Any, method: str | None = None) -> Any:
    body = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]
    except urllib.error.HTTPError as error:
        raise AssertionError(json.load(error)["value"]["message"]) from None


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """Starts the browser; skips the test if there is none.

    Args:
        folder: for its profile and the driver's log.
    """
    driver = shutil.which("chromedriver")
    if driver is None:
        pytest.skip("no chromedriver here: apt-get install chromium chromium-driver")
    port = free_port()
    with (folder / "chromedriver.log").open("wb") as log:
        process = subprocess.Popen([driver, f"--port={port}"], stdout=log, stderr=log)
    try:
        address = f"http://127.0.0.1:{port}"
        _wait_ready(address)
        options = {"args": [*ARGUMENTS, f"--user-data-dir={folder / 'profile'}"]}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}
        session = _request(f"{address}/session", {"capabilities": {"alwaysMatch": wanted}})
        address = f"{address}/session/{session['sessionId']}"
        yield Browser(address)
        _request(address, None, "DELETE")
    finally:
        process.terminate()
        process.wait()


def _wait_ready(address: str) -> None:
    end = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < end:
        try:
            if _request(f"{address}/status", None)["ready"]:
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("chromedriver is not ready")
