"""Lineage of a step's outputs: the content of its inputs, its code and its params, as in dvc.lock, and its libraries.

Two runs of a step with equal inputs, code, params and libraries have the same `key`, and so the same outputs.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.errors import ConcordError
from components.settings import Settings
from components.shared.io.secrets import masked_json
from components.shared.tracking.hashes import Content, dvc_content
from components.shared.tracking.libraries import installed
from components.steps import STEPS, Step

# Folder of the running code, dvc.lock and .dvcignore, in a container image or a checkout. Not the working directory.
ROOT = Path(__file__).resolve().parents[3]
UNKNOWN = "none"  # code fingerprint when the code cannot be identified

_AFTER_TRAINING = ("no_skill", "no_signal")  # settings that are read once a training has ended


@dataclass(frozen=True)
class Lineage:
    """Everything that determines the outputs of a step's run.

    Attributes:
        step: name of the step.
        inputs: port name -> content.
        code: folder -> content, see `code_identity`. Empty if unknown; such a run equals no other.
        params: section -> settings that determine the outputs.
        libraries: name -> version, see `libraries.installed`. Empty if unknown: an older run.
    """

    step: str
    inputs: Mapping[str, Content]
    code: Mapping[str, Content]
    params: Mapping[str, Any]
    libraries: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str | None:
        """SHA-256 (64 hex digits) of inputs, code, params and libraries; None if the code is unknown."""
        return self._digest(self.inputs, self.params) if self.code else None

    @property
    def state_name(self) -> str:
        """Name (16 hex digits) of the folder with the training state, and of its lock.

        Runs share it, and each resumes what the other left, if they differ only in an input that the step does not
        read, or in what is done about a training without any effect.
        """
        unread = STEPS[self.step].unread
        inputs = {port: item for port, item in self.inputs.items() if port not in unread}
        params = {
            section: {key: value for key, value in content.items() if key not in _AFTER_TRAINING}
            if isinstance(content, Mapping)
            else content
            for section, content in self.params.items()
        }
        return self._digest(inputs, params)[:16]

    def _digest(self, inputs: Mapping[str, Content], params: Mapping[str, Any]) -> str:
        content = {
            "step": self.step,
            "inputs": {port: item.md5 for port, item in inputs.items()},
            "code": {path: item.md5 for path, item in self.code.items()},
            "params": params,
            "libraries": self.libraries,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def code_fingerprint(self) -> str:
        """Fingerprint of the code, see `code_fingerprint()`."""
        return code_fingerprint(self.code)

    def to_json(self) -> dict[str, Any]:
        """Returns the JSON object that `from_json` reads."""
        return {
            "step": self.step,
            "inputs": {port: content.to_json() for port, content in self.inputs.items()},
            "code": {path: content.to_json() for path, content in self.code.items()},
            "params": self.params,
            "libraries": self.libraries,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Lineage":
        """Reads the JSON object that `to_json` returned.

        Raises:
            ValueError: `content` is not such an object.
        """
        try:
            inputs, code = (
                {name: Content(**item) for name, item in content[part].items()} for part in ("inputs", "code")
            )
            libraries = dict(content.get("libraries", {}))  # older runs have none
            return cls(STEPS[content["step"]].name, inputs, code, dict(content["params"]), libraries)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a lineage ({error!r})") from None


def compute_lineage(step: Step, settings: Settings, inputs: Mapping[str, Path]) -> Lineage:
    """Hashes the inputs and the code of a run of `step`. Reads every byte of the inputs.

    Args:
        inputs: port name -> path.

    Raises:
        ConcordError: an input is missing.
    """
    contents = {port: dvc_content(path) for port, path in inputs.items()}
    return Lineage(step.name, contents, code_identity(step), step_params(step, settings), installed())


def step_params(step: Step, settings: Settings) -> dict[str, Any]:
    """Returns the settings sections that determine the step's outputs, without secrets, see `masked_json`."""
    tree = settings.tree()
    return {name: masked_json(tree[name]) for name in step.sections}


def code_identity(step: Step, root: Path = ROOT) -> dict[str, Content]:
    """Hashes the code that determines the step's outputs: folder -> content, computed by DVC with .dvcignore.

    dvc.lock, the lineage in MLflow and the folders of training state all identify code by this. Empty if `root` has no
    .dvcignore, because bytecode would be hashed too.

    Raises:
        ConcordError: a folder of the step is missing.
    """
    if not (root / ".dvcignore").exists():
        return {}
    from dvc.fs import LocalFileSystem
    from dvc.ignore import DvcIgnoreFilter
    from dvc_data.hashfile.build import build
    from dvc_data.hashfile.db import HashFileDB

    files = LocalFileSystem()
    ignored = DvcIgnoreFilter(files, str(root))
    empty_db = HashFileDB(files, str(root / ".dvc" / "nowhere"), hash_name="md5")
    contents = {}
    for path in step.code:
        try:
            _, meta, obj = build(empty_db, str(root / path), files, "md5", dry_run=True, ignore=ignored)
        except FileNotFoundError:
            raise ConcordError(
                f"{root / path}: missing, and {step.name} depends on it. An image or a checkout needs all of "
                "components/, and .dvcignore next to it."
            ) from None
        contents[path] = Content(str(obj.hash_info.value), meta.size or 0, meta.nfiles)
    return contents


def code_fingerprint(code: Mapping[str, Content]) -> str:
    """Returns a fingerprint of 16 hex digits of the code, `UNKNOWN` if it is empty."""
    return fingerprint({path: content.md5 for path, content in code.items()}) if code else UNKNOWN


def fingerprint(content: Any) -> str:
    """Returns a fingerprint of 16 hex digits of JSON content, independent of the order of keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
