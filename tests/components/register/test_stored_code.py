"""Code that is stored with a registered version runs without the secrets of the process that asks it or serves it."""

import json
import shutil
from pathlib import Path

import mlflow
import pytest

from components.register.served_predictions import served_predictions
from components.shared.rows.rows import read_table
from tests.support.gray_world import GrayWorld
from tests.support.served import serving

MODEL = "spy"
# A model that answers 1, and records the environment in which it was loaded.
CODE = """
import json, os
from pathlib import Path
import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

class Spy(PythonModel):
    def load_context(self, context):
        mine = Path("/proc/self/environ")
        record = dict(os.environ), mine.read_text(errors="replace") if mine.exists() else ""
        Path(context.artifacts["record"]).read_text()
        Path({record!r}).write_text(json.dumps(record))

    def predict(self, context, model_input, params=None):
        return pd.DataFrame({{"value": [1.0] * len(model_input)}})

set_model(Spy())
"""
SECRETS = {
    "AWS_ACCESS_KEY_ID": "s3cr3t-1",
    "AWS_SECRET_ACCESS_KEY": "s3cr3t-2",
    "MLFLOW_TRACKING_USERNAME": "s3cr3t-3",
    "MLFLOW_TRACKING_PASSWORD": "s3cr3t-4",
    "MLFLOW_TRACKING_TOKEN": "s3cr3t-5",
    "HF_TOKEN": "s3cr3t-6",
    "HUGGING_FACE_HUB_TOKEN": "s3cr3t-7",
    "KF_PIPELINES_TOKEN": "s3cr3t-8",
    "WANDB_API_KEY": "s3cr3t-9",
    "NVIDIA_API_KEY": "s3cr3t-10",
    "POSTGRES_PASSWORD": "s3cr3t-11",
    "S3_OWNER_SECRET": "s3cr3t-12",
    "HTTPS_PROXY": "http://me:s3cr3t-13@proxy.example:3128",
    "PIP_INDEX_URL": "https://me:s3cr3t-14@packages.example/simple",
    "DATABASE_URL": "postgresql://me:s3cr3t-15@db.example/x",
    "SSH_AUTH_SOCK": "s3cr3t-16",
    "ANYTHING": "s3cr3t-17",
}
NEEDED = {
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "3",
    "NVIDIA_VISIBLE_DEVICES": "all",
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    "LC_ALL": "C.UTF-8",
}


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_database: Path) -> Path:
    """Registers the model in a store of its own; returns the file in which it records its environment."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setattr("mlflow.tracking.fluent._active_experiment_id", None)  # of an earlier test's store
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID", raising=False)
    found, code, artifact = tmp_path / "record.json", tmp_path / "spy.py", tmp_path / "artifact"
    code.write_text(CODE.format(record=str(found)))
    artifact.write_text("a file of the version")
    mlflow.pyfunc.log_model(
        python_model=str(code), name="model", artifacts={"record": str(artifact)}, pip_requirements=[],
        registered_model_name=MODEL,
    )  # fmt: skip
    for name, value in (SECRETS | NEEDED | {"TMPDIR": str(tmp_path)}).items():
        monkeypatch.setenv(name, value)
    return found


def assert_bare(record: Path, tmp_path: Path) -> None:
    variables, whole = json.loads(record.read_text())
    assert "s3cr3t" not in json.dumps(variables) + whole
    assert not [name for name in variables if name.startswith(("AWS_", "MLFLOW_TRACKING_"))]
    expected = NEEDED | {"TMPDIR": str(tmp_path)}
    assert {name: variables.get(name) for name in expected} == expected


def test_a_version_that_is_asked_sees_no_secret(record: Path, gray: GrayWorld, tmp_path: Path) -> None:
    ids = read_table(gray.ingest, "test", ["id"])["id"].to_pylist()
    answers = served_predictions(MODEL, "1", gray.ingest, 5, ids)
    assert answers["value"].to_pylist() == [1.0] * len(ids)
    assert_bare(record, tmp_path)


def test_a_version_that_is_served_sees_no_secret(record: Path, tmp_path: Path) -> None:
    variables = SECRETS | NEEDED | {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db", "TMPDIR": str(tmp_path)}
    with serving(tmp_path, variables, "--model", f"{MODEL}/1") as server:
        status, answer = server.post("/invocations", {"dataframe_records": [{"image": ""}]})
    assert (status, answer) == (200, {"predictions": [{"value": 1.0}]})
    assert_bare(record, tmp_path)
