"""Aliases and their history on a real store, and the commands for people. The versions hold no model."""

import getpass
from pathlib import Path

import pytest

from components.commands.registry import command
from components.errors import ConcordError
from components.register.registry import Registry
from components.shared.tracking.connection import connect

WORDS = ["--model", "reader"]


@pytest.fixture
def registry(store: Path) -> Registry:
    """A model with three versions, none of them champion."""
    found = Registry(connect(), "reader")
    found.create()
    found.create()  # again is no fault
    for number in range(1, 4):
        tags = {"concord.fingerprint": f"mark-{number}", "concord.reason": f"reason {number}"}
        found.client.create_model_version("reader", source=f"{store}/model-{number}", tags=tags)
    return found


def test_a_version_is_found_by_its_fingerprint(registry: Registry) -> None:
    found = registry.with_fingerprint("mark-2")
    assert found is not None
    assert str(found.version) == "2"
    assert registry.with_fingerprint("mark") is None


def test_promotion_leaves_who_when_why_and_whom_it_follows(registry: Registry) -> None:
    assert registry.promote("1", "first") is None
    assert registry.promote("3", "better") == "1"
    tags = registry.version("3").tags
    assert (tags["concord.promoted.by"], tags["concord.promoted.why"]) == (getpass.getuser(), "better")
    assert tags["concord.promoted.at"].endswith("+00:00")
    assert tags["concord.promoted.previous"] == "1"
    assert registry.champion() == "3"
    assert registry.promote("3", "again") == "1", "promoting the champion changes nothing"
    assert registry.version("3").tags["concord.promoted.why"] == "better"


def test_rollback_goes_back_along_the_whole_history(registry: Registry) -> None:
    for number in ("1", "2", "3", "2"):
        registry.promote(number, "trial")
    assert [registry.rollback("bad") for _ in range(3)] == [("2", "3"), ("3", "2"), ("2", "1")]
    with pytest.raises(ConcordError, match="version 1 is the first champion, there is none to go back to"):
        registry.rollback("bad")
    assert registry.champion() == "1"
    assert registry.version("3").tags["concord.rolled_back.to"] == "2"


def test_a_promotion_after_a_rollback_starts_from_there(registry: Registry) -> None:
    for number in ("1", "2"):
        registry.promote(number, "trial")
    registry.rollback("bad")
    assert "concord.rolled_back.at" in registry.version("2").tags
    assert registry.promote("3", "better") == "1"
    assert registry.promote("2", "mended") == "3"
    assert "concord.rolled_back.at" not in registry.version("2").tags
    assert [registry.rollback("bad")[1] for _ in range(2)] == ["3", "1"]


def test_a_champion_that_was_deleted_is_passed_over(registry: Registry) -> None:
    for number in ("1", "2", "3"):
        registry.promote(number, "trial")
    registry.client.delete_model_version("reader", "2")
    assert registry.rollback("bad") == ("3", "1")


def test_without_a_champion_there_is_nothing_to_roll_back(registry: Registry) -> None:
    with pytest.raises(ConcordError, match="no champion to roll back"):
        registry.rollback("bad")


@pytest.mark.parametrize("deed", ["_alias", "_set_history"])
def test_a_kill_in_a_promotion_leaves_the_old_champion_or_the_new_one(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, deed: str
) -> None:
    registry.promote("1", "first")
    with monkeypatch.context() as patch:
        patch.setattr(registry, deed, _killed)
        with pytest.raises(KeyboardInterrupt):
            registry.promote("2", "better")
    assert registry.champion() == "1"
    with pytest.raises(ConcordError, match="first champion"):
        registry.rollback("nothing to go back to")
    assert registry.promote("2", "better") == "1"
    assert registry.rollback("bad") == ("2", "1")


def _killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_champion_that_was_set_in_mlflow_s_own_ui_is_part_of_the_history(registry: Registry) -> None:
    registry.promote("1", "first")
    registry.client.set_registered_model_alias("reader", "champion", "2")
    assert registry.promote("3", "better") == "2"
    assert [registry.rollback("bad")[1] for _ in range(2)] == ["2", "1"]


def test_commands_tell_what_they_did(registry: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["promote", "--version", "1", "--reason", "first", *WORDS])
    command.main(["promote", "--version", "3", "--reason", "seen on site", *WORDS])
    command.main(["rollback", "--reason", "too slow", *WORDS])
    said = capsys.readouterr().out
    assert "version 1 is champion\n" in said
    assert "version 3 is champion, after version 1" in said
    assert "version 1 is champion again, version 3 is not" in said
    command.main(["show", *WORDS])
    said = " ".join(capsys.readouterr().out.split())
    assert "reason 2" in said
    assert "promoted by hand: seen on site" in said
    assert "too slow" in said
    command.main(["show", "--version", "3", *WORDS])
    said = capsys.readouterr().out
    assert "too slow" in said
    assert registry.version("3").description == "promoted by hand: seen on site"


def test_faults_are_told_in_words(registry: Registry) -> None:
    with pytest.raises(ConcordError, match=r"reader: no version 9 in the registry"):
        command.main(["promote", "--version", "9", "--reason", "x", *WORDS])
    registry.promote("1", "first")
    with pytest.raises(ConcordError, match="first champion"):
        command.main(["rollback", *WORDS])
    with pytest.raises(ConcordError, match=r"nobody: no version in the registry at sqlite.*make run"):
        command.main(["show", "--model", "nobody"])
