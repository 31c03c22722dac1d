"""Lineage of a step: its code hashes equal DVC's for this repository, and its key tells whether two runs are equal."""

import dataclasses
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
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
from components.shared.tracking.libraries import LIBRARIES
from components.shared.tracking.lineage import Lineage, code_identity, compute_lineage, step_params
from components.shared.tracking.reuse import find_in_lock
from components.steps import STEPS

ROOT = Path(__file__).parents[4]


@pytest.fixture(scope="module")
def stages() -> dict[str, PipelineStage]:
    with Repo(str(ROOT)) as repo:
        return {stage.name: stage for stage in repo.index.stages if isinstance(stage, PipelineStage)}


@pytest.mark.parametrize("name", STEPS)
def test_code_hashes_equal_those_of_dvc(name: str, stages: dict[str, PipelineStage]) -> None:
    expected = {}
    for dep in stages[name].deps:
        if dep.def_path.startswith("components/"):
            dep.save()
            expected[dep.def_path] = Content(dep.hash_info.value, dep.meta.size, dep.meta.nfiles)
    assert code_identity(STEPS[name]) == expected
    assert f"components/{name}" in expected


def test_code_is_unknown_without_dvcignore(tmp_path: Path) -> None:
    """Bytecode would be hashed too."""
    assert code_identity(STEPS["ingest"], tmp_path) == {}
    shutil.copy(ROOT / ".dvcignore", tmp_path)
    with pytest.raises(ConcordError, match="components/ingest: missing, and ingest depends on it"):
        code_identity(STEPS["ingest"], tmp_path)
    lineage = Lineage("ingest", {}, {}, {})
    assert (lineage.key, lineage.code_fingerprint) == (None, "none")


def example(**changes: Any) -> Lineage:
    lineage = Lineage(
        "validate",
        {"ingest": Content("a" * 32 + ".dir", 10, 2)},
        {"components/validate": Content("b" * 32 + ".dir", 20, 3), "components/shared/x.py": Content("c" * 32, 4)},
        {"task": {"low": 0, "high": 100}, "validate": {"near_bits": 10}},
        {"torch": "2.13.0", "trl": "1.16.0"},
    )
    return dataclasses.replace(lineage, **changes)


def test_libraries_enter_the_lineage_without_their_build_and_without_an_import(
    settings: Settings, tmp_path: Path
) -> None:
    expected = {name: version(name).partition("+")[0] for name in LIBRARIES}
    assert compute_lineage(STEPS["ingest"], settings, {"data": tmp_path}).libraries == expected
    code = (
        "import sys; from components.shared.tracking.libraries import installed; print(installed()['torch']); "
        "print({'torch', 'transformers', 'trl', 'peft', 'numpy', 'PIL'} & set(sys.modules) or 'none')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [expected["torch"], "none"]
    assert "+" not in done.stdout


@pytest.mark.parametrize(
    "other",
    [
        example(inputs={"ingest": Content("d" * 32 + ".dir", 10, 2)}),
        example(code={**example().code, "components/shared/x.py": Content("d" * 32, 4)}),
        example(code={"components/validate": example().code["components/validate"]}),
        example(params={**example().params, "validate": {"near_bits": 11}}),
        example(step="sft"),
        example(libraries={**example().libraries, "trl": "1.16.1"}),
    ],
)
def test_any_change_gives_another_key(other: Lineage) -> None:
    assert other.key != example().key


def test_order_does_not_change_the_key_and_json_round_trips() -> None:
    reordered = example(
        code=dict(reversed(list(example().code.items()))),
        params={"validate": {"near_bits": 10}, "task": {"high": 100, "low": 0}},
    )
    assert reordered.key == example().key
    assert Lineage.from_json(example().to_json()) == example()
    older = {name: part for name, part in example().to_json().items() if name != "libraries"}
    assert Lineage.from_json(older) == example(libraries={})
    for damaged in (
        {},
        {**example().to_json(), "inputs": {"ingest": {"md5": "a"}}},
        {**example().to_json(), "step": "no"},
    ):
        with pytest.raises(ValueError, match="not a lineage"):
            Lineage.from_json(damaged)


def test_params_hold_the_step_s_sections_and_no_secret(settings: Settings, tmp_path: Path) -> None:
    task = settings.task.model_copy(update={"question": "see https://me:hunter2@host/x"})
    lineage = compute_lineage(STEPS["validate"], settings.model_copy(update={"task": task}), {"ingest": tmp_path})
    assert lineage.params.keys() == {"task", "validate", "register"}
    assert "hunter2" not in str(lineage.to_json())


def test_params_do_not_depend_on_secrets_in_the_environment(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masking such values would change the params, and so the key, from machine to machine."""
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY", raising=False)
    task = settings.task.model_copy(update={"question": "https://host/x?token=abc"})
    changed = settings.model_copy(update={"task": task})
    plain = step_params(STEPS["validate"], changed)
    assert plain["task"]["question"] == "https://host/x?token=***"
    assert "max_test_imbalance" in plain["validate"]
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    assert step_params(STEPS["validate"], changed) == plain


def raw_lock(lineage: Lineage) -> dict[str, Any]:
    """The entry in dvc.lock for this lineage."""
    paths = {"ingest": "artifacts/ingest"}
    deps = [{"path": paths[port], "hash": "md5", **c.to_json()} for port, c in lineage.inputs.items()]
    deps += [{"path": path, "hash": "md5", **content.to_json()} for path, content in lineage.code.items()]
    outs = [{"path": "artifacts/validate", "hash": "md5", "md5": "e" * 32 + ".dir", "size": 1, "nfiles": 1}]
    return {"cmd": "python", "deps": deps, "params": {"params.yaml": dict(lineage.params)}, "outs": outs}


def test_lock_entry_of_an_equal_run_gives_its_outputs(tmp_path: Path) -> None:
    lock = tmp_path / "dvc.lock"
    assert find_in_lock(example(), lock) is None
    lock.write_text(yaml.safe_dump({"schema": "2.0", "stages": {"validate": raw_lock(example())}}))
    found = find_in_lock(example(), lock)
    assert found is not None
    assert (found.source, found.outputs) == ("dvc.lock", {"out": "e" * 32 + ".dir"})


def test_lock_is_read_as_yaml_1_2(tmp_path: Path) -> None:
    """As DVC writes it: 1e-05 is a number, and `on` is a string."""
    lineage = example(params={"task": {"low": 0, "unit": "on"}, "validate": {"lr": 1e-5, "min_lr": 2.5e-07}})
    lock = tmp_path / "dvc.lock"
    dump_yaml(lock, {"schema": "2.0", "stages": {"validate": raw_lock(lineage)}})
    assert {"lr: 1e-05", "unit: on"} <= {line.strip() for line in lock.read_text(encoding="utf-8").splitlines()}
    found = find_in_lock(lineage, lock)
    assert found is not None
    assert found.outputs == {"out": "e" * 32 + ".dir"}
    lock.write_text("stages: [", encoding="utf-8")
    assert find_in_lock(lineage, lock) is None, "a damaged file gives no outputs"


def _input(entry: dict[str, Any]) -> None:
    entry["deps"][0]["md5"] = "f" * 32 + ".dir"


def _code(entry: dict[str, Any]) -> None:
    del entry["deps"][-1]


def _params(entry: dict[str, Any]) -> None:
    entry["params"]["params.yaml"] = {"task": {"low": 1, "high": 100}, "validate": {"near_bits": 10}}


def _outputs(entry: dict[str, Any]) -> None:
    entry["outs"] = []


@pytest.mark.parametrize("change", [_input, _code, _params, _outputs])
def test_lock_entry_of_a_different_run_gives_nothing(change: Callable[[dict[str, Any]], None], tmp_path: Path) -> None:
    entry = raw_lock(example())
    change(entry)
    (tmp_path / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": {"validate": entry}}))
    assert find_in_lock(example(), tmp_path / "dvc.lock") is None


def test_lock_of_this_repository_gives_the_outputs_of_validate(settings: Settings) -> None:
    """In the real file, the params that DVC writes are those that a step sees."""
    entry = yaml.safe_load((ROOT / "dvc.lock").read_text(encoding="utf-8"))["stages"]["validate"]
    contents = {dep["path"]: Content(dep["md5"], dep["size"], dep.get("nfiles")) for dep in entry["deps"]}
    inputs = {"ingest": contents.pop("artifacts/ingest")}
    lineage = Lineage("validate", inputs, contents, entry["params"]["params.yaml"])
    found = find_in_lock(lineage, ROOT / "dvc.lock")
    assert found is not None
    assert found.outputs == {"out": entry["outs"][0]["md5"]}
    assert step_params(STEPS["validate"], settings).keys() == entry["params"]["params.yaml"].keys()
