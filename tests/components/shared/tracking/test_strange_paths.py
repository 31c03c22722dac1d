"""A checkout whose path has characters with a meaning in URIs: one database and one folder of artifacts, in it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
# A step that stores an artifact, and a process in another folder that finds it by the absolute URI.
STEP = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from components.settings import load_settings
from components.shared.tracking.connection import absolute_tracking_uri, connect
from components.shared.tracking.past_runs import read_record
from components.shared.tracking.step_run import step_run
from components.steps import STEPS
with step_run(STEPS["ingest"], load_settings(Path(sys.argv[1]) / "params.yaml"), {}) as run:
    pass
os.environ["MLFLOW_TRACKING_URI"] = absolute_tracking_uri()
os.chdir("/")
client = connect()
assert read_record(client, client.get_run(run.run_id)).lineage.step == "ingest"
"""


@pytest.mark.parametrize("name", ["a?b c", "x?y=1&z#%3F é"])
def test_everything_lies_in_the_checkout(name: str, empty_database: Path, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "mlflow.db").write_bytes(empty_database.read_bytes())
    env = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    done = subprocess.run(
        [sys.executable, "-c", STEP, str(ROOT)], cwd=folder, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_relative_to(folder)] == []
    assert {path.name for path in folder.iterdir()} == {"mlflow.db", ".mlflow.db.lock", "mlruns"}
