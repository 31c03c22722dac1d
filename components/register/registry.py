"""Versions, aliases and the champion history in MLflow's model registry.

MLflow keeps no history of aliases, so tags store it: on the model, the versions that were champion, in order; on a
version, who promoted or rolled it back, when and why.
"""

import contextlib
import getpass
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from components.errors import ConcordError
from components.shared.tracking.champion import CHAMPION
from components.shared.tracking.connection import mlflow_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHALLENGER = "challenger"
FINGERPRINT = "concord.fingerprint"
DECISION = "concord.decision"
REASON = "concord.reason"
HISTORY = "concord.champions"  # on the model: version numbers, the newest last
PROMOTED = "concord.promoted."  # + by, at, why, previous
ROLLED_BACK = "concord.rolled_back."  # + by, at, why, to
LOGGED_MODEL = "models:/"  # + id of the logged model: source of a version
MAX_HISTORY = 200
ANY = "any"  # champion; no number of a version
MAX_DESCRIPTION = 5000  # MLflow's limit


class Registry:
    """One registered model."""

    def __init__(self, client: "MlflowClient", name: str) -> None:
        """The model `name` need not exist yet; `create` creates it."""
        self.client = client
        self.name = name

    def create(self) -> None:
        """Creates the registered model if it does not exist."""
        from mlflow.exceptions import MlflowException

        with mlflow_errors(f"create the registered model {self.name}"):
            try:
                self.client.create_registered_model(self.name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise

    def versions(self) -> list["ModelVersion"]:
        """Returns all versions, the newest first; an empty list if the model does not exist."""
        with mlflow_errors(f"list the versions of {self.name}"):
            versions = self.client.search_model_versions(f"name = '{self.name}'")
        return sorted(versions, key=lambda version: int(version.version), reverse=True)

    def version(self, number: str) -> "ModelVersion":
        """Returns a version with its tags.

        Raises:
            ConcordError: the version does not exist.
        """
        version = next((version for version in self.versions() if str(version.version) == number), None)
        if version is None:
            raise ConcordError(
                f"{self.name}: no version {number} in the registry. List them: python -m components registry show"
            )
        return version

    def with_fingerprint(self, fingerprint: str) -> "ModelVersion | None":
        """Returns the version that was registered from these weights and settings, or None."""
        return next((version for version in self.versions() if version.tags.get(FINGERPRINT) == fingerprint), None)

    def aliases(self) -> dict[str, str]:
        """Returns alias -> version number."""
        with mlflow_errors(f"read the aliases of {self.name}"):
            aliases = self.client.get_registered_model(self.name).aliases
        return {alias: str(number) for alias, number in aliases.items()}

    def champion(self) -> str | None:
        """Returns the number of the version with the alias `champion`, or None."""
        return self.aliases().get(CHAMPION)

    def tag(self, number: str, tags: Mapping[str, str]) -> None:
        """Sets tags of a version."""
        with mlflow_errors(f"tag version {number} of {self.name}"):
            for key, value in tags.items():
                self.client.set_model_version_tag(self.name, number, key, value)

    def _untag(self, number: str, keys: Sequence[str]) -> None:
        for key in keys:
            with mlflow_errors(f"tag version {number} of {self.name}"), contextlib.suppress(KeyError):
                self.client.delete_model_version_tag(self.name, number, key)

    def describe(self, number: str, reason: str, sections: Sequence[str] = ()) -> None:
        """Stores the reason as a tag, and as the description that the UI shows, followed by the sections that fit."""
        self.tag(number, {REASON: reason})
        description = reason[:MAX_DESCRIPTION]
        for section in sections:
            if len(description) + len(section) + 2 <= MAX_DESCRIPTION:
                description += f"\n\n{section}"
        with mlflow_errors(f"describe version {number} of {self.name}"):
            self.client.update_model_version(self.name, number, description=description)

    def attach(self, version: "ModelVersion", file: Path) -> None:
        """Stores a file with the version's model, replacing an earlier one of this name."""
        model_id = version.source.removeprefix(LOGGED_MODEL)  # MLflow's search does not give the version's model_id
        with mlflow_errors(f"store {file.name} with version {version.version} of {self.name}"):
            self.client.log_model_artifact(model_id, str(file))

    def challenge(self, number: str) -> None:
        """Makes a version the challenger."""
        self._alias(CHALLENGER, number)

    def promote(self, number: str, why: str, judged: str | None = ANY) -> str | None:
        """Makes a version champion and records who did it, when and why; returns the previous champion's number.

        If the process is killed in between, the old champion stays; calling `promote` again completes the promotion.
        MLflow cannot set an alias on a condition. So the champion is read right before and right after: another
        promotion goes unnoticed only if it falls between the read and the write, a request each, and is overwritten.

        Args:
            judged: the champion that the version was compared with, None for none; by default any.

        Raises:
            ConcordError: another version became champion meanwhile.
        """
        judged = self.champion() if judged == ANY else judged
        self._still(judged, number)
        history = self._history()
        previous = history[-1] if history else None
        if previous == number:
            return self.version(number).tags.get(f"{PROMOTED}previous") or None
        self.tag(number, _who_when_why(PROMOTED, why) | {f"{PROMOTED}previous": previous or ""})
        try:
            self._still(judged, number)
        except ConcordError:
            self._untag(number, [f"{PROMOTED}{key}" for key in ("by", "at", "why", "previous")])
            raise
        self._untag(number, [f"{ROLLED_BACK}{key}" for key in ("by", "at", "why", "to")])
        self._set_history([*history, number])
        self._alias(CHAMPION, number)
        self._still(number, number)
        return previous

    def _still(self, expected: str | None, number: str) -> None:
        champion = self.champion()
        if champion != expected:
            names = [f"version {one}" if one else "no version" for one in (expected, champion)]
            raise ConcordError(
                f"{self.name}: while version {number} was promoted, another process changed the champion from "
                f"{names[0]} to {names[1]}. Compare with the present champion: run register again."
            )

    def rollback(self, why: str) -> tuple[str, str]:
        """Makes the previous champion the champion again; returns the numbers of the current and the previous one.

        Raises:
            ConcordError: there is no champion, or no previous one.
        """
        number = self.champion()
        if number is None:
            raise ConcordError(f"{self.name}: there is no champion to roll back. Promote a version first.")
        existing = {str(version.version) for version in self.versions()}
        earlier = [version for version in self._history()[:-1] if version in existing]
        while earlier and earlier[-1] == number:
            earlier.pop()
        if not earlier:
            raise ConcordError(
                f"{self.name}: version {number} is the first champion, so there is no previous one. "
                "Promote another version: python -m components registry promote --version N --reason ..."
            )
        previous = earlier[-1]
        self.tag(number, _who_when_why(ROLLED_BACK, why) | {f"{ROLLED_BACK}to": previous})
        self._alias(CHAMPION, previous)
        self._set_history(earlier)
        return number, previous

    def _history(self) -> list[str]:
        """Returns the numbers of the versions that were champion, the current one last.

        The alias takes precedence: if a kill or a change in MLflow's UI made the two differ, the history is adapted.
        """
        with mlflow_errors(f"read {self.name}"):
            tag = self.client.get_registered_model(self.name).tags.get(HISTORY, "")
        history = [number for number in tag.split(",") if number]
        number = self.champion()
        if number is None:
            return []
        if number not in history:
            return [*history, number]
        while history[-1] != number:
            history.pop()
        return history

    def _set_history(self, numbers: list[str]) -> None:
        with mlflow_errors(f"tag {self.name}"):
            tag = ",".join(numbers[-MAX_HISTORY:])
            self.client.set_registered_model_tag(self.name, HISTORY, tag)

    def _alias(self, alias: str, number: str) -> None:
        with mlflow_errors(f"make version {number} of {self.name} {alias}"):
            self.client.set_registered_model_alias(self.name, alias, number)


def _who_when_why(prefix: str, why: str) -> dict[str, str]:
    """Tags of a promotion or a rollback."""
    try:
        who = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        who = str(os.getuid())
    return {f"{prefix}by": who, f"{prefix}at": datetime.now(UTC).isoformat(timespec="seconds"), f"{prefix}why": why}
