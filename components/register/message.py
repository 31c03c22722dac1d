"""One sentence on what became of a version, for the terminal and for a chat."""

import os
from typing import Any

from components.console import console
from components.register.decisions import decided

WEBHOOK = "CONCORD_NOTIFY_URL"  # environment variable: the address that gets a message; it is a secret
TIMEOUT = 10  # seconds


def verdict(registration: dict[str, Any] | None) -> str:
    """One sentence: which version was registered, whether it was promoted, and why."""
    if registration is None:
        return "Nothing is registered yet."
    version = f"{registration['name']} version {registration['version']}"
    state = "is now champion" if registration["promoted"] else "is registered as challenger, not promoted"
    count = registration.get("test_set_decisions")
    draws = f" The test set {decided(count)}." if count else ""
    return f"{version} {state}: {registration['reason']}{draws}"


def notify(experiment: str, registration: dict[str, Any]) -> None:
    """Posts the sentence as JSON `{"text": ...}`, which chats accept, to the address in WEBHOOK, if it is set.

    An error is a warning: the version is registered, whoever hears of it.
    """
    address = os.environ.get(WEBHOOK)
    if not address:
        return
    import requests

    try:
        text = f"{experiment}: {verdict(registration)}"
        requests.post(address, json={"text": text}, timeout=TIMEOUT).raise_for_status()
    except requests.RequestException as error:  # its text may contain the address
        status = "" if error.response is None else f", status {error.response.status_code}"
        console.print(f"[yellow]warning[/] {WEBHOOK}: the message was not accepted ({type(error).__name__}{status})")
