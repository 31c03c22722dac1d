"""What a step is made from: held against DVC's own hashes of this repository, and what makes two runs equal."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.repo import Repo
from dvc.stage import PipelineStage
from dvc.utils.serialize import dump_yaml

from components.errors import ConcordError
from components.settings import Settings
from components.shared.tracking.hashes import Content
from components.shared.tracking.lineage import Lineage, code_identity, lineage_of, params_of
from components.shared.tracking.reuse import cached_by_lock
from components.steps import STEPS

ROOT = Path(__file__).parents[4]


@pytest.fixture(scope="module")
def stages() -> dict[str, PipelineStage]:
    with Repo(str(ROOT)) as repo:
        return {stage.name: stage for stage in repo.index.stages if isinstance(stage, PipelineStage)}


@pytest.mark.parametrize("name", STEPS)
def test_code_is_what_dvc_itself_would_write_of_it(name: str, stages: dict[str, PipelineStage]) -> None:
    wanted = {}
    for dep in stages[name].deps:
        if dep.def_path.startswith("components/"):
            dep.save()
            wanted[dep.def_path] = Content(dep.hash_info.value, dep.meta.size, dep.meta.nfiles)
    assert code_identity(STEPS[name]) == wanted
    assert f"components/{name}" in wanted


def test_without_dvcignore_the_code_is_not_known(tmp_path: Path) -> None:
    """Bytecode would count."""
    assert code_identity(STEPS["ingest"], tmp_path) == {}
    shutil.copy(ROOT / ".dvcignore", tmp_path)
    with pytest.raises(ConcordError, match="components/ingest: missing, and ingest depends on it"):
        code_identity(STEPS["ingest"], tmp_path)
    lineage = Lineage("ingest", {}, {}, {})
    assert (lineage.key, lineage.code_mark) == (None, "none")


def made(**changes: Any) -> Lineage:
    lineage = Lineage(
        "validate",
        {"ingest": Content("a" * 32 + ".dir", 10, 2)},
        {"components/validate": Content("b" * 32 + ".dir", 20, 3), "components/shared/x.py": Content("c" * 32, 4)},
        {"task": {"low": 0, "high": 100}, "validate": {"near_bits": 10}},
    )
    return dataclasses.replace(lineage, **changes)


@pytest.mark.parametrize(
    "other",
    [
        made(inputs={"ingest": Content("d" * 32 + ".dir", 10, 2)}),
        made(code={**made().code, "components/shared/x.py": Content("d" * 32, 4)}),
        made(code={"components/validate": made().code["components/validate"]}),
        made(params={**made().params, "validate": {"near_bits": 11}}),
        made(step="sft"),
    ],
)
def test_a_change_is_another_key(other: Lineage) -> None:
    assert other.key != made().key


def test_order_is_no_change_and_json_gives_the_same_back() -> None:
    turned = made(
        code=dict(reversed(made().code.items())),
        params={"validate": {"near_bits": 10}, "task": {"high": 100, "low": 0}},
    )
    assert turned.key == made().key
    assert Lineage.from_json(made().to_json()) == made()
    for kept in ({}, {**made().to_json(), "inputs": {"ingest": {"md5": "a"}}}, {**made().to_json(), "step": "no"}):
        with pytest.raises(ValueError, match="no lineage"):
            Lineage.from_json(kept)


def test_a_step_has_its_own_sections_and_no_secret(settings: Settings, tmp_path: Path) -> None:
    task = settings.task.model_copy(update={"question": "see https://me:hunter2@host/x"})
    lineage = lineage_of(STEPS["validate"], settings.model_copy(update={"task": task}), {"ingest": tmp_path})
    assert lineage.params.keys() == {"task", "validate"}
    assert "hunter2" not in str(lineage.to_json())


def test_what_the_environment_calls_a_secret_changes_no_params(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else equal settings would be others on another machine, down to the names of their keys."""
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY", raising=False)
    task = settings.task.model_copy(update={"question": "https://host/x?token=abc"})
    asked = settings.model_copy(update={"task": task})
    plain = params_of(STEPS["validate"], asked)
    assert plain["task"]["question"] == "https://host/x?token=***"
    assert "max_test_imbalance" in plain["validate"]
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    assert params_of(STEPS["validate"], asked) == plain


def raw_lock(lineage: Lineage) -> dict[str, Any]:
    """The entry of DVC's lock file about it."""
    paths = {"ingest": "artifacts/ingest"}
    deps = [{"path": paths[port], "hash": "md5", **c.to_json()} for port, c in lineage.inputs.items()]
    deps += [{"path": path, "hash": "md5", **content.to_json()} for path, content in lineage.code.items()]
    outs = [{"path": "artifacts/validate", "hash": "md5", "md5": "e" * 32 + ".dir", "size": 1, "nfiles": 1}]
    return {"cmd": "python", "deps": deps, "params": {"params.yaml": dict(lineage.params)}, "outs": outs}


def test_the_lock_of_the_same_tells_what_it_makes(tmp_path: Path) -> None:
    lock = tmp_path / "dvc.lock"
    assert cached_by_lock(made(), lock) is None
    lock.write_text(yaml.safe_dump({"schema": "2.0", "stages": {"validate": raw_lock(made())}}))
    found = cached_by_lock(made(), lock)
    assert found is not None
    assert (found.where, found.outputs) == ("dvc.lock", {"out": "e" * 32 + ".dir"})


def test_the_lock_is_read_as_dvc_writes_it(tmp_path: Path) -> None:
    """By YAML 1.2: 1e-05 is a number there, and `on` a word."""
    lineage = made(params={"task": {"low": 0, "unit": "on"}, "validate": {"lr": 1e-5, "min_lr": 2.5e-07}})
    lock = tmp_path / "dvc.lock"
    dump_yaml(lock, {"schema": "2.0", "stages": {"validate": raw_lock(lineage)}})
    assert {"lr: 1e-05", "unit: on"} <= {line.strip() for line in lock.read_text(encoding="utf-8").splitlines()}
    found = cached_by_lock(lineage, lock)
    assert found is not None
    assert found.outputs == {"out": "e" * 32 + ".dir"}
    lock.write_text("stages: [", encoding="utf-8")
    assert cached_by_lock(lineage, lock) is None, "a damaged file tells nothing"


def _input(entry: dict[str, Any]) -> None:
    entry["deps"][0]["md5"] = "f" * 32 + ".dir"


def _code(entry: dict[str, Any]) -> None:
    del entry["deps"][-1]


def _params(entry: dict[str, Any]) -> None:
    entry["params"]["params.yaml"] = {"task": {"low": 1, "high": 100}, "validate": {"near_bits": 10}}


def _outputs(entry: dict[str, Any]) -> None:
    entry["outs"] = []


@pytest.mark.parametrize("change", [_input, _code, _params, _outputs])
def test_the_lock_of_another_tells_nothing(change: Callable[[dict[str, Any]], None], tmp_path: Path) -> None:
    entry = raw_lock(made())
    change(entry)
    (tmp_path / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": {"validate": entry}}))
    assert cached_by_lock(made(), tmp_path / "dvc.lock") is None


def test_this_repository_s_lock_is_read(settings: Settings) -> None:
    """Of the real file: the params that DVC writes are those that a step sees."""
    entry = yaml.safe_load((ROOT / "dvc.lock").read_text(encoding="utf-8"))["stages"]["validate"]
    contents = {dep["path"]: Content(dep["md5"], dep["size"], dep.get("nfiles")) for dep in entry["deps"]}
    inputs = {"ingest": contents.pop("artifacts/ingest")}
    lineage = Lineage("validate", inputs, contents, entry["params"]["params.yaml"])
    found = cached_by_lock(lineage, ROOT / "dvc.lock")
    assert found is not None
    assert found.outputs == {"out": entry["outs"][0]["md5"]}
    assert params_of(STEPS["validate"], settings).keys() == entry["params"]["params.yaml"].keys()
