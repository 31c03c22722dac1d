"""The lock of runs that are not straightforward: outputs in no remote, in a foreign one, steps from Kubeflow's cache.

Runs of steps are written into a real MLflow store as the steps write them; the checkout is a real one of DVC. A whole
pipeline, run and locked, is in tests/e2e/test_lineage.py.
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
from components.shared.tracking.lineage import Lineage, code_identity, params_of
from components.shared.tracking.step_run import REMOTE, step_run
from components.steps import STEPS
from pipelines.lock import write_lock
from tests.support.gauge_world import write_params
from tests.support.repository import write_code


@dataclass
class Checkout:
    """A checkout without outputs.

    Attributes:
        path: its folder; what runs made lies beside it.
        made: path in the checkout -> where the last run made it.
    """

    path: Path
    made: dict[str, Path]

    def finished(
        self, run: str, remote: str = "", cached: Collection[str] = (), settings: Settings | None = None
    ) -> None:
        """A run of the pipeline; each makes the same. `cached`: steps that Kubeflow took from its own cache."""
        settings = settings or load_settings(self.path / "params.yaml")
        made: dict[str, Content] = {}
        for name, step in STEPS.items():
            inputs = {port: made[port] if port in STEPS else dvc_content(self.path / "data") for port in step.inputs}
            outputs = {port: self.path.parent / "pods" / run / name / port for port in step.outputs}
            for port, place in outputs.items():
                place.mkdir(parents=True)
                (place / "metrics.json").write_text(f"{name} {port}", encoding="utf-8")
                self.made[step.outputs[port]] = place
            made[name] = dvc_content(outputs["out"])
            if name in cached:
                continue
            lineage = Lineage(name, inputs, code_identity(step, self.path), params_of(step, settings))
            with step_run(step, settings, dict.fromkeys(step.inputs, self.path), lineage, run) as tracked:
                tracked.finish({}, outputs)
                if remote:
                    tracked.tag(REMOTE, remote)

    def configured(self, remote: Path) -> None:
        """With a default remote."""
        config = f"[core]\n    remote = there\n    no_scm = true\n['remote \"there\"']\n    url = {remote}\n"
        (self.path / ".dvc" / "config").write_text(config, encoding="utf-8")


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables, which takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        place = tmp_path_factory.mktemp("store")
        patch.chdir(place)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place}/mlflow.db")
        connect()
    return place / "mlflow.db"


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


def test_outputs_that_nobody_could_pull_are_refused(checkout: Checkout) -> None:
    checkout.finished("run-1")
    with pytest.raises(ConcordError) as caught:
        write_lock("run-1", checkout.path)
    assert "nobody could `dvc pull` artifacts/ingest, artifacts/validate, artifacts/sft, " in str(caught.value)
    assert "Set CONCORD_DVC_REMOTE and run the pipeline again" in str(caught.value)
    assert not (checkout.path / "dvc.lock").exists()

    for place, made in checkout.made.items():
        shutil.copytree(made, checkout.path / place)
    assert write_lock("run-1", checkout.path) == list(STEPS), "they lie where they belong"
    with Repo(str(checkout.path)) as repo:
        repo.commit(force=True)
    for place in checkout.made:
        shutil.rmtree(checkout.path / place)
    assert write_lock("run-1", checkout.path) == [], "DVC's cache has them"
    checkout.configured(checkout.path.parent / "remote")
    with Repo(str(checkout.path)) as repo:
        repo.push()
    shutil.rmtree(checkout.path / ".dvc" / "cache")
    assert write_lock("run-1", checkout.path) == [], "the default remote has them"
    shutil.rmtree(checkout.path.parent / "remote")
    shutil.copytree(checkout.made["artifacts/sft"], checkout.path / "artifacts" / "sft")
    (checkout.path / "artifacts" / "sft" / "metrics.json").write_text("others", encoding="utf-8")
    with pytest.raises(ConcordError, match=r"`dvc pull` artifacts/ingest, artifacts/validate, artifacts/sft,"):
        write_lock("run-1", checkout.path)


def test_a_remote_that_the_checkout_does_not_know_is_told_with_the_way_to_it(
    checkout: Checkout, capsys: pytest.CaptureFixture[str]
) -> None:
    remote = checkout.path.parent / "remote"
    checkout.finished("run-1", remote=f"{remote}/")
    assert write_lock("run-1", checkout.path) == list(STEPS)
    said = capsys.readouterr().err
    assert said.count("is none of this checkout's DVC remotes") == 1
    assert f"`dvc remote add of-the-run {remote}`, then `dvc pull --remote of-the-run`" in said
    checkout.configured(remote)
    write_lock("run-1", checkout.path)
    assert "remote add" not in capsys.readouterr().err


def test_of_the_runs_that_made_a_cached_step_s_output_one_like_the_checkout_is_taken(checkout: Checkout) -> None:
    settings = load_settings(checkout.path / "params.yaml")
    other = settings.model_copy(update={"ingest": settings.ingest.model_copy(update={"image_size": 77})})
    assert other != settings
    checkout.finished("other-1", "/remote", settings=other)
    checkout.finished("cached-1", "/remote", cached=["ingest"])
    with pytest.raises(ConcordError, match=r"ingest: params ingest\.image_size: 77 in the run, "):
        write_lock("cached-1", checkout.path)
    checkout.finished("first", "/remote")
    checkout.finished("no-remote")
    checkout.finished("other-2", "/remote", settings=other)
    checkout.finished("cached-2", "/remote", cached=["ingest"])
    assert write_lock("cached-2", checkout.path) == list(STEPS)
