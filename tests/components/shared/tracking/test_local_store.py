"""A store of a checkout that was moved or copied, or is a copy that DVC deletes: artifacts stay beside the database."""

import shutil
from pathlib import Path

import pytest

from components.settings import Settings
from components.shared.tracking.connection import connect, tracking_uri
from components.shared.tracking.local_store import store_folder
from components.shared.tracking.step_run import step_run
from components.steps import STEPS


@pytest.fixture
def checkout(store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a store of its own."""
    (store / "first").mkdir()
    shutil.move(store / "mlflow.db", store / "first")
    enter(store / "first", monkeypatch)
    return store / "first"


def enter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Works in another checkout. The variable names its default store: MLflow would keep the first one open by name."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("copied", [True, False])
def test_a_moved_or_copied_checkout_reads_and_writes_beside_its_own_database(
    copied: bool, checkout: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with step_run(STEPS["ingest"], settings, {}) as before:
        before.attach(_report(checkout), "report")
    second = checkout.with_name("second")
    monkeypatch.chdir(checkout.parent)
    (shutil.copytree if copied else shutil.move)(checkout, second)
    left = files(checkout)
    enter(second, monkeypatch)
    with step_run(STEPS["ingest"], settings, {}) as after:
        after.attach(_report(second), "report")
    assert after.experiment_id == before.experiment_id
    for run in (before, after):
        uri = connect().get_run(run.run_id).info.artifact_uri
        assert uri == str(second / "mlruns" / run.experiment_id / run.run_id / "artifacts")
        assert Path(connect().download_artifacts(run.run_id, "report/report.html")).read_text("utf-8") == "<p>"
    assert files(checkout) == left, "nothing is written where the store was before"


def test_a_copied_database_without_its_artifacts_writes_beside_itself_and_still_finds_the_old_ones(
    checkout: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with step_run(STEPS["ingest"], settings, {}) as before:
        before.attach(_report(checkout), "report")
    second = checkout.with_name("second")
    second.mkdir()
    shutil.copy(checkout / "mlflow.db", second)
    enter(second, monkeypatch)
    left = files(checkout)
    with step_run(STEPS["ingest"], settings, {}) as after:
        after.attach(_report(second), "report")
    assert (second / "mlruns" / after.experiment_id / after.run_id / "artifacts" / "report" / "report.html").exists()
    assert connect().list_artifacts(before.run_id, "report")
    assert files(checkout) == left


def test_a_copy_by_dvc_uses_the_store_of_its_checkout(
    checkout: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`dvc exp run --temp` works below .dvc/tmp/exps and deletes the copy afterwards."""
    copy = checkout / ".dvc" / "tmp" / "exps" / "standalone" / "tmpabc"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert store_folder(Path()) == checkout
    with step_run(STEPS["ingest"], settings, {}) as run:
        run.attach(_report(copy), "report")
    monkeypatch.chdir(checkout)
    shutil.rmtree(copy)
    assert tracking_uri() == "sqlite:///mlflow.db"
    enter(checkout, monkeypatch)
    assert connect().get_run(run.run_id).info.status == "FINISHED"
    assert Path(connect().download_artifacts(run.run_id, "report/report.html")).read_text("utf-8") == "<p>"


def _report(folder: Path) -> Path:
    (folder / "report").mkdir(exist_ok=True)
    (folder / "report" / "report.html").write_text("<p>", encoding="utf-8")
    return folder / "report"
