"""The sentence about a registration, and its way to a webhook."""

from collections.abc import Iterator

import pytest

from components.register.message import WEBHOOK, notify, verdict
from tests.support.webhook import Webhook

REGISTRATION = {"name": "m", "version": "2", "promoted": True, "reason": "because.", "test_set_decisions": 3}
SENTENCE = "m version 2 is now champion: because. The test set has decided about 3 versions of this model."


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhook]:
    with Webhook() as server:
        monkeypatch.setenv(WEBHOOK, server.url)
        yield server


def test_the_sentence() -> None:
    assert verdict(REGISTRATION) == SENTENCE
    challenger = verdict(REGISTRATION | {"promoted": False, "test_set_decisions": None})
    assert challenger == "m version 2 is registered as challenger, not promoted: because."


def test_the_webhook_gets_the_sentence(chat: Webhook) -> None:
    notify("gauges", REGISTRATION)
    assert chat.bodies == [{"text": f"gauges: {SENTENCE}"}]


def test_nothing_is_sent_without_an_address(chat: Webhook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(WEBHOOK)
    notify("gauges", REGISTRATION)
    assert chat.bodies == []


def test_an_error_is_a_warning_without_the_address(
    chat: Webhook, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chat.status = 404
    notify("gauges", REGISTRATION)
    monkeypatch.setenv(WEBHOOK, "http://127.0.0.1:9/services/hidden-path")
    notify("gauges", REGISTRATION)
    printed = capsys.readouterr().err
    assert f"{WEBHOOK}: the message was not accepted (HTTPError, status 404)" in printed
    assert "(ConnectionError)" in printed
    assert "hidden-path" not in printed
