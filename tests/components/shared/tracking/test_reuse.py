"""Outputs in dvc.lock are used only if they were computed with the installed libraries."""

import re
from pathlib import Path

import pytest
from dvc.utils.serialize import dump_yaml

from components.settings import Settings
from components.shared.tracking import reuse
from components.shared.tracking.hashes import dvc_content
from components.shared.tracking.libraries import installed, record
from components.shared.tracking.lineage import compute_lineage
from components.shared.tracking.remote import REMOTE_ENV, configured_remote
from components.steps import STEPS


@pytest.mark.parametrize("libraries", [installed(), {**installed(), "trl": "0.1"}, {}])
def test_outputs_of_other_libraries_are_not_used(
    libraries: dict[str, str],
    store: Path,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    step = STEPS["grpo"]
    inputs = {port: store / port for port in step.inputs}
    for folder in (*inputs.values(), out := store / "pushed"):
        folder.mkdir()
    (out / "metrics.json").write_text("{}", encoding="utf-8")
    if libraries:  # older outputs do not say
        record(out, libraries)
    monkeypatch.setenv(REMOTE_ENV, f"{store}/remote")
    remote = configured_remote()
    assert remote is not None
    remote.push(out, dvc_content(out))
    lineage = compute_lineage(step, settings, inputs)
    deps = {step.inputs[port]: content for port, content in lineage.inputs.items()} | dict(lineage.code)
    entry = {
        "deps": [{"path": path, "md5": content.md5} for path, content in deps.items()],
        "params": {"params.yaml": dict(lineage.params)},
        "outs": [{"path": step.outputs["out"], "md5": dvc_content(out).md5}],
    }
    dump_yaml(store / "dvc.lock", {"schema": "2.0", "stages": {"grpo": entry}})
    monkeypatch.setattr(reuse, "ROOT", store)
    found = reuse.restore(step, lineage, remote, {"out": store / "out"})
    assert (found is not None) == (libraries == installed())
    said = re.sub(r"\s+", " ", capsys.readouterr().err)
    assert ("outputs of other libraries (dvc.lock; " in said) == (found is None)
