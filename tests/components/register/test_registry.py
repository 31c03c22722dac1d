"""Aliases and their history on a real store, and the registry command. The versions hold no model."""

import getpass
from collections.abc import Mapping
from pathlib import Path

import pytest

from components.commands.registry import command
from components.errors import ConcordError
from components.register.registry import Registry
from components.shared.tracking.connection import connect

MODEL = ["--model", "reader"]


@pytest.fixture
def registry(store: Path) -> Registry:
    """A registered model with three versions and no champion."""
    registry = Registry(connect(), "reader")
    registry.create()
    registry.create()  # a second call changes nothing
    for number in range(1, 4):
        tags = {"concord.fingerprint": f"print-{number}", "concord.reason": f"reason {number}"}
        registry.client.create_model_version("reader", source=f"{store}/model-{number}", tags=tags)
    return registry


def test_version_is_found_by_its_fingerprint(registry: Registry) -> None:
    version = registry.with_fingerprint("print-2")
    assert version is not None
    assert str(version.version) == "2"
    assert registry.with_fingerprint("print") is None


def test_promotion_records_who_when_why_and_the_previous_champion(registry: Registry) -> None:
    assert registry.promote("1", "first") is None
    assert registry.promote("3", "better") == "1"
    tags = registry.version("3").tags
    assert (tags["concord.promoted.by"], tags["concord.promoted.why"]) == (getpass.getuser(), "better")
    assert tags["concord.promoted.at"].endswith("+00:00")
    assert tags["concord.promoted.previous"] == "1"
    assert registry.champion() == "3"
    assert registry.promote("3", "again") == "1", "promoting the champion changes nothing"
    assert registry.version("3").tags["concord.promoted.why"] == "better"


def test_a_version_that_was_compared_with_an_earlier_champion_is_not_promoted(registry: Registry) -> None:
    registry.promote("1", "first")
    registry.promote("2", "by another process, during the comparison")
    with pytest.raises(ConcordError, match=r"changed the champion from version 1 to version 2.*run register again"):
        registry.promote("3", "better than 1", "1")
    with pytest.raises(ConcordError, match="from no version to version 2"):
        registry.promote("3", "better than the warm start", None)
    assert registry.champion() == "2"
    assert "concord.promoted.at" not in registry.version("3").tags
    assert registry.promote("3", "better than 2", "2") == "2"


@pytest.mark.parametrize("moment", ["before", "after"])
def test_another_promotion_at_the_same_moment_is_reported(registry: Registry, moment: str) -> None:
    """The other process promotes right before or right after the alias is set."""
    other = Registry(registry.client, registry.name)
    registry.promote("1", "first")

    class Interleaved(Registry):
        def tag(self, number: str, tags: Mapping[str, str]) -> None:
            super().tag(number, tags)
            if moment == "before":
                other.promote("2", "by another process")

        def _alias(self, alias: str, number: str) -> None:
            super()._alias(alias, number)
            if moment == "after":
                other.promote("2", "by another process")

    with pytest.raises(ConcordError, match="while version 3 was promoted, another process changed the champion"):
        Interleaved(registry.client, registry.name).promote("3", "better", "1")
    assert registry.champion() == "2"
    assert ("concord.promoted.at" in registry.version("3").tags) is (moment == "after"), "it was champion for a moment"


def test_rollback_follows_the_whole_history(registry: Registry) -> None:
    for number in ("1", "2", "3", "2"):
        registry.promote(number, "trial")
    assert [registry.rollback("bad") for _ in range(3)] == [("2", "3"), ("3", "2"), ("2", "1")]
    with pytest.raises(ConcordError, match="version 1 is the first champion, so there is no previous one"):
        registry.rollback("bad")
    assert registry.champion() == "1"
    assert registry.version("3").tags["concord.rolled_back.to"] == "2"


def test_promotion_after_a_rollback_continues_the_history(registry: Registry) -> None:
    for number in ("1", "2"):
        registry.promote(number, "trial")
    registry.rollback("bad")
    assert "concord.rolled_back.at" in registry.version("2").tags
    assert registry.promote("3", "better") == "1"
    assert registry.promote("2", "mended") == "3"
    assert "concord.rolled_back.at" not in registry.version("2").tags
    assert [registry.rollback("bad")[1] for _ in range(2)] == ["3", "1"]


def test_rollback_skips_deleted_champions(registry: Registry) -> None:
    for number in ("1", "2", "3"):
        registry.promote(number, "trial")
    registry.client.delete_model_version("reader", "2")
    assert registry.rollback("bad") == ("3", "1")


def test_rollback_without_a_champion_is_refused(registry: Registry) -> None:
    with pytest.raises(ConcordError, match="no champion to roll back"):
        registry.rollback("bad")


@pytest.mark.parametrize("method", ["_alias", "_set_history"])
def test_promotion_that_was_killed_leaves_the_old_champion_and_can_be_repeated(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    registry.promote("1", "first")
    with monkeypatch.context() as patch:
        patch.setattr(registry, method, _killed)
        with pytest.raises(KeyboardInterrupt):
            registry.promote("2", "better")
    assert registry.champion() == "1"
    with pytest.raises(ConcordError, match="first champion"):
        registry.rollback("nothing to go back to")
    assert registry.promote("2", "better") == "1"
    assert registry.rollback("bad") == ("2", "1")


def _killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_champion_set_in_the_mlflow_ui_is_part_of_the_history(registry: Registry) -> None:
    registry.promote("1", "first")
    registry.client.set_registered_model_alias("reader", "champion", "2")
    assert registry.promote("3", "better") == "2"
    assert [registry.rollback("bad")[1] for _ in range(2)] == ["2", "1"]


def test_commands_print_what_they_changed(registry: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["promote", "--version", "1", "--reason", "first", *MODEL])
    command.main(["promote", "--version", "3", "--reason", "seen on site", *MODEL])
    command.main(["rollback", "--reason", "too slow", *MODEL])
    stdout = capsys.readouterr().out
    assert "version 1 is champion\n" in stdout
    assert "version 3 is champion and replaces version 1" in stdout
    assert "version 1 is champion again and replaces version 3" in stdout
    command.main(["show", *MODEL])
    stdout = " ".join(capsys.readouterr().out.split())
    assert "reason 2" in stdout
    assert "promoted by hand: seen on site" in stdout
    assert "too slow" in stdout
    command.main(["show", "--version", "3", *MODEL])
    stdout = capsys.readouterr().out
    assert "too slow" in stdout
    assert registry.version("3").description == "promoted by hand: seen on site"


def test_errors_name_the_version_or_the_model(registry: Registry) -> None:
    with pytest.raises(ConcordError, match=r"reader: no version 9 in the registry"):
        command.main(["promote", "--version", "9", "--reason", "x", *MODEL])
    registry.promote("1", "first")
    with pytest.raises(ConcordError, match="first champion"):
        command.main(["rollback", *MODEL])
    with pytest.raises(ConcordError, match=r"nobody: no version in the registry at sqlite.*make run"):
        command.main(["show", "--model", "nobody"])
