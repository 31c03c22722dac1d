"""Settings files for tests: with every optional section filled in, and the error message for wrong content."""

import copy
import json
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from components.errors import ConcordError
from components.settings import Settings, load_settings
from components.strict import Strict
from pipelines.cluster_settings import DEFAULT_FILE, Cluster, load_cluster
from tests.support.raw_folder import PUBLISHED

ROOT = Path(__file__).parents[2]
RAW: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
RAW_CLUSTER: dict[str, Any] = yaml.safe_load(DEFAULT_FILE.read_text(encoding="utf-8"))
VLLM = {"mode": "colocate", "memory": 0.3, "host": "127.0.0.1", "port": 8000}
RELEASE = {"subset": "agedb", "train": "train.jsonl", "val": "val.json", "test": "test.json", "hub": None}
HUB = {"id": "owner/release", "revision": "0" * 40}
LORA = {"r": 64, "alpha": 128, "dropout": 0.05, "targets": "all-linear"}
TAINT = {"key": "nvidia.com/gpu", "operator": "Exists", "value": None, "effect": "NoSchedule"}


def full_params() -> dict[str, Any]:
    """Returns params.yaml with the optional sections filled in."""
    raw = copy.deepcopy(RAW)
    raw["ingest"] |= {"source": "release", "release": RELEASE | {"hub": dict(HUB)}}
    raw["model"]["lora"] = dict(LORA)
    raw["grpo"] |= PUBLISHED | {"recent": {"inputs": 256, "steps": 32}, "vllm": dict(VLLM)}
    return raw


def full_cluster() -> dict[str, Any]:
    """Returns the default cluster file with the optional sections filled in."""
    raw = copy.deepcopy(RAW_CLUSTER)
    for pod in raw["steps"].values():
        pod |= {"accelerator": {"type": "nvidia.com/gpu", "count": 1}, "node_selector": {"pool": "gpu"}}
        pod["tolerations"] = [dict(TAINT)]
    return raw


@dataclass(frozen=True)
class SettingsFile:
    """A kind of settings file.

    Attributes:
        name: the file's name.
        kind: its settings type.
        load: reads and checks a file.
        full: returns content with every optional section.
    """

    name: str
    kind: type[Strict]
    load: Callable[[Path], Strict]
    full: Callable[[], dict[str, Any]]

    def message(self, content: Any, folder: Path) -> str:
        """Returns the error message for wrong content."""
        file = folder / self.name
        file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        with pytest.raises(ConcordError) as error:
            self.load(file)
        return str(error.value).replace(str(file), self.name)


PARAMS = SettingsFile("params.yaml", Settings, load_settings, full_params)
CLUSTER = SettingsFile("cluster.yaml", Cluster, load_cluster, full_cluster)


def keys(model: type[BaseModel], prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yields every key of the settings and of their sections, as a path, with its annotation.

    Of sibling sections of the same type (a pod for each step) only the first section's keys are yielded. Keys of list
    items are not included; other tests cover them.
    """
    seen: set[type[BaseModel]] = set()
    for name, field in model.model_fields.items():
        path = (*prefix, field.alias or name)
        yield path, field.annotation
        parts = () if typing.get_origin(field.annotation) is list else typing.get_args(field.annotation)
        for part in (field.annotation, *parts):
            if isinstance(part, type) and issubclass(part, BaseModel) and part not in seen:
                seen.add(part)
                yield from keys(part, path)


def section(raw: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    """Returns the mapping that contains the key at `path`."""
    for part in path[:-1]:
        raw = raw[part]
    return raw
