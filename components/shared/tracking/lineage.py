"""What a step's outputs are made from: content of its inputs, of its code and its params, as dvc.lock tells them.

Two runs of a step with the same of all three have the same `key`: the outputs of one are those of the other.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.errors import ConcordError
from components.settings import Settings
from components.shared.io.secrets import masked_leaves
from components.shared.tracking.hashes import Content, dvc_content
from components.steps import STEPS, Step

# Where the running code, dvc.lock and .dvcignore are: in an image as in a checkout. Not the working directory.
ROOT = Path(__file__).resolve().parents[3]
UNKNOWN = "none"  # the mark of code that nothing is known of


@dataclass(frozen=True)
class Lineage:
    """What a run of a step is made from.

    Attributes:
        step: its name.
        inputs: port name -> content.
        code: folder -> content, see `code_identity`. Empty where it is not known; then no run counts as equal.
        params: section -> settings, those that decide what comes out.
    """

    step: str
    inputs: Mapping[str, Content]
    code: Mapping[str, Content]
    params: Mapping[str, Any]

    @property
    def key(self) -> str | None:
        """The same 64 hex digits for the same inputs, code and params; None where the code is not known."""
        if not self.code:
            return None
        made_from = {
            "step": self.step,
            "inputs": {port: content.md5 for port, content in self.inputs.items()},
            "code": {path: content.md5 for path, content in self.code.items()},
            "params": self.params,
        }
        return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()

    @property
    def code_mark(self) -> str:
        """Short name of this very code."""
        return code_mark(self.code)

    def to_json(self) -> dict[str, Any]:
        """As `from_json` takes it."""
        return {
            "step": self.step,
            "inputs": {port: content.to_json() for port, content in self.inputs.items()},
            "code": {path: content.to_json() for path, content in self.code.items()},
            "params": self.params,
        }

    @classmethod
    def from_json(cls, kept: Mapping[str, Any]) -> "Lineage":
        """What `to_json` gave.

        Raises:
            ValueError: it did not give that.
        """
        try:
            inputs, code = (
                {name: Content(**found) for name, found in kept[part].items()} for part in ("inputs", "code")
            )
            return cls(STEPS[kept["step"]].name, inputs, code, dict(kept["params"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no lineage ({error!r})") from None


def lineage_of(step: Step, settings: Settings, inputs: Mapping[str, Path]) -> Lineage:
    """Hashes what a run of `step` is made from. Reads inputs whole.

    Args:
        inputs: port name -> path.

    Raises:
        ConcordError: an input is missing.
    """
    contents = {port: dvc_content(path) for port, path in inputs.items()}
    return Lineage(step.name, contents, code_identity(step), params_of(step, settings))


def params_of(step: Step, settings: Settings) -> dict[str, Any]:
    """The sections that decide what the step makes, without the passwords and tokens of addresses."""
    tree = settings.tree()
    return {name: masked_leaves(tree[name]) for name in step.sections}


def code_identity(step: Step, root: Path = ROOT) -> dict[str, Content]:
    """The code that decides the step's outputs: folder -> content, hashed by DVC, which respects .dvcignore.

    dvc.lock, the lineage in MLflow and the folders of training state all identify code by it. Empty where the code has
    no .dvcignore beside it, without which bytecode would count.

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
    nowhere = HashFileDB(files, str(root / ".dvc" / "nowhere"), hash_name="md5")
    found = {}
    for path in step.code:
        try:
            _, meta, obj = build(nowhere, str(root / path), files, "md5", dry_run=True, ignore=ignored)
        except FileNotFoundError:
            raise ConcordError(
                f"{root / path}: missing, and {step.name} depends on it. An image or a checkout needs the whole of "
                "components/, with .dvcignore beside it."
            ) from None
        found[path] = Content(str(obj.hash_info.value), meta.size or 0, meta.nfiles)
    return found


def code_mark(code: Mapping[str, Content]) -> str:
    """Short name of some code: 16 hex digits, or `UNKNOWN` where there is none."""
    return fingerprint({path: content.md5 for path, content in code.items()}) if code else UNKNOWN


def fingerprint(content: Any) -> str:
    """The same 16 hex digits for the same JSON content, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
