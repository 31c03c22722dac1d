"""Versions, aliases and their history in MLflow's model registry.

Aliases keep no history, so it is kept in tags: on the model, the versions that were champion, in order; on a version,
who promoted or rolled it back, when and why.
"""

import contextlib
import getpass
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from components.errors import ConcordError
from components.shared.tracking.champion import CHAMPION
from components.shared.tracking.connection import mlflow_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHALLENGER = "challenger"
FINGERPRINT = "concord.fingerprint"
REASON = "concord.reason"
HISTORY = "concord.champions"  # on the model: version numbers, the newest last
PROMOTED = "concord.promoted."  # by, at, why, previous
ROLLED_BACK = "concord.rolled_back."  # by, at, why, to
LONGEST_HISTORY = 200
LONGEST_DESCRIPTION = 4000  # MLflow's own limit is 5000


class Registry:
    """One registered model."""

    def __init__(self, client: "MlflowClient", name: str) -> None:
        """`name` need not exist yet; `create` sees to that."""
        self.client = client
        self.name = name

    def create(self) -> None:
        """Makes the registered model where there is none."""
        from mlflow.exceptions import MlflowException

        with mlflow_errors(f"create the registered model {self.name}"):
            try:
                self.client.create_registered_model(self.name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise

    def versions(self) -> list["ModelVersion"]:
        """Every version, the newest first; none where the model does not exist."""
        with mlflow_errors(f"list the versions of {self.name}"):
            found = self.client.search_model_versions(f"name = '{self.name}'")
        return sorted(found, key=lambda version: int(version.version), reverse=True)

    def version(self, number: str) -> "ModelVersion":
        """A version with its tags.

        Raises:
            ConcordError: there is no such version.
        """
        found = next((version for version in self.versions() if str(version.version) == number), None)
        if found is None:
            raise ConcordError(
                f"{self.name}: no version {number} in the registry. See: python -m components registry show"
            )
        return found

    def with_fingerprint(self, mark: str) -> "ModelVersion | None":
        """The version that was registered from these weights and settings, if there is one."""
        return next((version for version in self.versions() if version.tags.get(FINGERPRINT) == mark), None)

    def aliases(self) -> dict[str, str]:
        """Alias -> version number."""
        with mlflow_errors(f"read the aliases of {self.name}"):
            found = self.client.get_registered_model(self.name).aliases
        return {alias: str(number) for alias, number in found.items()}

    def champion(self) -> str | None:
        """Number of the version with the alias champion."""
        return self.aliases().get(CHAMPION)

    def tag(self, number: str, tags: Mapping[str, str]) -> None:
        """Sets tags of a version."""
        with mlflow_errors(f"tag version {number} of {self.name}"):
            for key, value in tags.items():
                self.client.set_model_version_tag(self.name, number, key, value)

    def describe(self, number: str, reason: str) -> None:
        """The reason as tag and as description, which the UI shows."""
        self.tag(number, {REASON: reason})
        with mlflow_errors(f"describe version {number} of {self.name}"):
            self.client.update_model_version(self.name, number, description=reason[:LONGEST_DESCRIPTION])

    def challenge(self, number: str) -> None:
        """Makes a version the challenger."""
        self._alias(CHALLENGER, number)

    def promote(self, number: str, why: str) -> str | None:
        """Makes a version champion and writes down who, when, why and whom it follows; that one's number is returned.

        A kill in between leaves the old champion in place; doing it again mends the rest.
        """
        history = self._history()
        previous = history[-1] if history else None
        if previous == number:
            return self.version(number).tags.get(f"{PROMOTED}previous") or None
        self.tag(number, _stamp(PROMOTED, why) | {f"{PROMOTED}previous": previous or ""})
        for key in ("by", "at", "why", "to"):
            with mlflow_errors(f"tag version {number} of {self.name}"), contextlib.suppress(KeyError):
                self.client.delete_model_version_tag(self.name, number, f"{ROLLED_BACK}{key}")
        self._set_history([*history, number])
        self._alias(CHAMPION, number)
        return previous

    def rollback(self, why: str) -> tuple[str, str]:
        """Makes the champion before today's champion again; returns both numbers, today's first.

        Raises:
            ConcordError: there is no champion, or none before it.
        """
        number = self.champion()
        if number is None:
            raise ConcordError(f"{self.name}: there is no champion to roll back. Promote a version first.")
        present = {str(version.version) for version in self.versions()}
        earlier = [known for known in self._history()[:-1] if known in present]
        while earlier and earlier[-1] == number:
            earlier.pop()
        if not earlier:
            raise ConcordError(
                f"{self.name}: version {number} is the first champion, there is none to go back to. "
                "Promote another by hand: python -m components registry promote --version N --reason ..."
            )
        back = earlier[-1]
        self.tag(number, _stamp(ROLLED_BACK, why) | {f"{ROLLED_BACK}to": back})
        self._alias(CHAMPION, back)
        self._set_history(earlier)
        return number, back

    def _history(self) -> list[str]:
        """Numbers of the versions that were champion, today's last.

        The alias is what counts: where a kill or a hand in MLflow's UI made the two differ, the history follows it.
        """
        with mlflow_errors(f"read {self.name}"):
            kept = self.client.get_registered_model(self.name).tags.get(HISTORY, "")
        history = [number for number in kept.split(",") if number]
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
            kept = ",".join(numbers[-LONGEST_HISTORY:])
            self.client.set_registered_model_tag(self.name, HISTORY, kept)

    def _alias(self, alias: str, number: str) -> None:
        with mlflow_errors(f"make version {number} of {self.name} {alias}"):
            self.client.set_registered_model_alias(self.name, alias, number)


def _stamp(prefix: str, why: str) -> dict[str, str]:
    try:
        who = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        who = str(os.getuid())
    return {f"{prefix}by": who, f"{prefix}at": datetime.now(UTC).isoformat(timespec="seconds"), f"{prefix}why": why}
