"""Steps that start at the same moment on a store that does not exist yet."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

from components.settings import Settings
from components.shared.tracking.connection import connect

ROOT = Path(__file__).parents[4]
OPEN = """
import sys, time
from pathlib import Path
import mlflow, mlflow.store.tracking.sqlalchemy_store
from components.settings import load_settings
from components.shared.tracking.step_run import step_run
from components.steps import STEPS
step, root = STEPS[sys.argv[1]], Path(sys.argv[2])
settings = load_settings(root / "params.yaml")
print("ready", flush=True)
input()
with step_run(step, settings, {}) as run:
    print(run.parent_id)
"""


def test_first_steps_that_start_together_share_a_store_an_experiment_and_a_parent(
    store: Path, settings: Settings
) -> None:
    (store / "mlflow.db").unlink()
    steps = ["ingest", "sft", "grpo"]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{OPEN}", step, str(ROOT)],
            cwd=store, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for step in steps
    ]  # fmt: skip
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    ends = [(process.communicate(timeout=120), process.returncode) for process in started]
    assert [code for _, code in ends] == [0, 0, 0], ends
    assert len({out.strip() for (out, _), _ in ends}) == 1
    client = connect()
    found = client.search_experiments()
    assert Counter(experiment.name for experiment in found) == {"Default": 1, settings.experiment: 1}
    (experiment,) = [each.experiment_id for each in found if each.name == settings.experiment]
    assert len(client.search_runs([experiment], "tags.`concord.kind` = 'experiment'")) == 1
