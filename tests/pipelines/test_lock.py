"""`lock` in special cases: outputs in no remote or an unknown one, steps from Kubeflow's cache.

The tests write runs to a real MLflow store as the steps do, and use a real DVC checkout. tests/e2e/test_lineage.py runs
and locks a whole pipeline.
"""

import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import pytest
from dvc.repo import Repo

from components.errors import ConcordError
from components.settings import Settings, load_settings
from components.shared.tracking.connection import connect
from components.shared.tracking.hashes import Content, dvc_content
from components.shared.tracking.lineage import Lineage, code_identity, step_params
from components.shared.tracking.step_run import step_run
from components.shared.tracking.tags import REMOTE
from components.steps import STEPS
from pipelines.lock import write_lock
from tests.support.gauge_world import write_params
from tests.support.repository import write_code


@dataclass
class Checkout:
    """A checkout without outputs.

    Attributes:
        path: its folder; the runs' outputs are in a sibling folder.
        outputs: path in the checkout -> where the last run wrote that output.
    """

    path: Path
    outputs: dict[str, Path]

    def add_run(
        self, run: str, remote: str = "", cached: Collection[str] = (), settings: Settings | None = None
    ) -> None:
        """Records a finished run of the pipeline. All runs write the same outputs.

        Args:
            run: Kubeflow's id.
            remote: the DVC remote with the outputs; empty for none.
            cached: steps that Kubeflow took from its own cache, which have no MLflow run.
            settings: None for those of the checkout.
        """
        settings = settings or load_settings(self.path / "params.yaml")
        contents: dict[str, Content] = {}
        for name, step in STEPS.items():
            inputs = {
                port: contents[port] if port in STEPS else dvc_content(self.path / "data") for port in step.inputs
            }
            outputs = {port: self.path.parent / "pods" / run / name / port for port in step.outputs}
            for port, path in outputs.items():
                path.mkdir(parents=True)
                (path / "metrics.json").write_text(f"{name} {port}", encoding="utf-8")
                self.outputs[step.outputs[port]] = path
            contents[name] = dvc_content(outputs["out"])
            if name in cached:
                continue
            lineage = Lineage(name, inputs, code_identity(step, self.path), step_params(step, settings))
            with step_run(step, settings, dict.fromkeys(step.inputs, self.path), lineage, run) as tracked:
                tracked.finish({}, outputs)
                if remote:
                    tracked.tag(REMOTE, remote)

    def set_default_remote(self, remote: Path) -> None:
        """Configures DVC's default remote."""
        config = f"[core]\n    remote = there\n    no_scm = true\n['remote \"there\"']\n    url = {remote}\n"
        (self.path / ".dvc" / "config").write_text(config, encoding="utf-8")


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables, created once because it takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("store")
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        connect()
    return folder / "mlflow.db"


@pytest.fixture
def checkout(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkout:
    shutil.copy(empty_store, tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("CONCORD_COMMIT", "c0ffee")
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "checkout"
    write_code(root)
    write_params(root / "params.yaml")
    (root / "data").mkdir()
    (root / "data" / "scenes.csv").write_text("x\n1\n", encoding="utf-8")
    Repo.init(str(root), no_scm=True).close()
    return Checkout(root, {})


def test_outputs_that_cannot_be_pulled_are_refused(checkout: Checkout) -> None:
    checkout.add_run("run-1")
    with pytest.raises(ConcordError) as caught:
        write_lock("run-1", checkout.path)
    assert "`dvc pull` could not fetch artifacts/ingest, artifacts/validate, artifacts/sft, " in str(caught.value)
    assert "Set CONCORD_DVC_REMOTE and run the pipeline again" in str(caught.value)
    assert not (checkout.path / "dvc.lock").exists()

    for path, output in checkout.outputs.items():
        shutil.copytree(output, checkout.path / path)
    assert write_lock("run-1", checkout.path) == list(STEPS), "the checkout has them"
    with Repo(str(checkout.path)) as repo:
        repo.commit(force=True)
    for path in checkout.outputs:
        shutil.rmtree(checkout.path / path)
    assert write_lock("run-1", checkout.path) == [], "DVC's cache has them"
    checkout.set_default_remote(checkout.path.parent / "remote")
    with Repo(str(checkout.path)) as repo:
        repo.push()
    shutil.rmtree(checkout.path / ".dvc" / "cache")
    assert write_lock("run-1", checkout.path) == [], "the default remote has them"
    shutil.rmtree(checkout.path.parent / "remote")
    shutil.copytree(checkout.outputs["artifacts/sft"], checkout.path / "artifacts" / "sft")
    (checkout.path / "artifacts" / "sft" / "metrics.json").write_text("different", encoding="utf-8")
    with pytest.raises(ConcordError, match=r"could not fetch artifacts/ingest, artifacts/validate, artifacts/sft,"):
        write_lock("run-1", checkout.path)


def test_unknown_remote_is_reported_with_the_commands_to_add_it(
    checkout: Checkout, capsys: pytest.CaptureFixture[str]
) -> None:
    remote = checkout.path.parent / "remote"
    checkout.add_run("run-1", remote=f"{remote}/")
    assert write_lock("run-1", checkout.path) == list(STEPS)
    stderr = capsys.readouterr().err
    assert stderr.count("is not a DVC remote of this checkout") == 1
    assert f"`dvc remote add of-the-run {remote}`, then `dvc pull --remote of-the-run`" in stderr
    checkout.set_default_remote(remote)
    write_lock("run-1", checkout.path)
    assert "remote add" not in capsys.readouterr().err


def test_for_a_cached_step_a_run_that_equals_the_checkout_is_preferred(checkout: Checkout) -> None:
    settings = load_settings(checkout.path / "params.yaml")
    other = settings.model_copy(update={"ingest": settings.ingest.model_copy(update={"image_size": 77})})
    assert other != settings
    checkout.add_run("other-1", "/remote", settings=other)
    checkout.add_run("cached-1", "/remote", cached=["ingest"])
    with pytest.raises(ConcordError, match=r"ingest: params ingest\.image_size: 77 in the run, "):
        write_lock("cached-1", checkout.path)
    checkout.add_run("first", "/remote")
    checkout.add_run("no-remote")
    checkout.add_run("other-2", "/remote", settings=other)
    checkout.add_run("cached-2", "/remote", cached=["ingest"])
    assert write_lock("cached-2", checkout.path) == list(STEPS)
