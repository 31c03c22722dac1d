"""A run of the pipeline gives back a dvc.lock: every step as Kubeflow starts it, then a checkout that has nothing.

Real DVC, real MLflow, a real S3 server. Kubeflow's part is played by the test: its paths, its executor input, the
settings as sections, the code of an image without repository. The checkout is an empty clone.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp.local import executor_output_utils

from components.shared.tracking.hashes import dvc_hash
from components.steps import STEPS
from tests.components.gauge_world import write_data, write_params
from tests.components.shared.data.s3_server import OWNER, S3Server, environment

ROOT = Path(__file__).parents[2]
REMOTE = "s3://open/lineage"
RUN = "6b1c2f1e-0000-4a57-9d0e-lineage00001"
SECTIONS: Mapping[str, Mapping[str, Any]] = {
    "validate": {"min_rows_per_shot": 1},
    "evaluate": {"bootstrap": 50},
    "register": {"bootstrap": 50},
}
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


@dataclass
class World:
    """A repository with its data pushed, the image made of it, an MLflow store, a remote.

    Attributes:
        root: everything is below it.
        upstream: the repository.
        image: its code, as an image has it: no .git, no .dvc, params.yaml of another experiment.
        commit: of both.
        variables: the environment of every process.
    """

    root: Path
    upstream: Path
    image: Path
    variables: dict[str, str]
    commit: str = ""

    def call(self, *words: str, cwd: Path, fails: bool = False, **variables: str) -> str:
        """What a command says, both streams; it must end well, or not."""
        environment = {**self.variables, **variables}
        import resource
        import time

        a = resource.getrusage(resource.RUSAGE_CHILDREN)
        t = time.monotonic()
        done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
        b = resource.getrusage(resource.RUSAGE_CHILDREN)
        print(
            "TIME",
            " ".join(map(str, words[:4])),
            round(b.ru_utime + b.ru_stime - a.ru_utime - a.ru_stime, 1),
            round(time.monotonic() - t, 1),
            flush=True,
        )
        said = done.stdout + done.stderr
        assert (done.returncode != 0) == fails, said
        return said

    def python(self, *words: str, cwd: Path, fails: bool = False, **variables: str) -> str:
        """The same of `python -m WORDS`."""
        return self.call(sys.executable, "-m", *words, cwd=cwd, fails=fails, **variables)

    def places(self, step: str, run: str) -> dict[str, Path]:
        """Where Kubeflow puts the outputs of a step."""
        folder = self.root / "s3" / "mlpipeline" / run / step
        return {port: folder / port for port in STEPS[step].outputs}

    def task(self, name: str, run: str, inputs_of: str = "", fails: bool = False, **variables: str) -> str:
        """Runs a step as its container does, and gives what it said."""
        step, outputs = STEPS[name], self.places(name, run)
        made = {port: self.places(port, inputs_of or run)["out"] for port in step.inputs if port in STEPS}
        raw = {"data": self.upstream / "data"} if "data" in step.inputs else {}
        words = step.command(
            str(self.image / "params.yaml"), {k: str(v) for k, v in {**made, **raw, **outputs}.items()}
        )
        settings = yaml.safe_load((self.upstream / "params.yaml").read_text(encoding="utf-8"))
        words += ["--experiment", settings["experiment"], "--pipeline-run", run]
        for section in step.sections:
            words += ["--section", section, json.dumps(settings[section])]
        words += ["--executor-input", json.dumps(self.executor_input(name, run))]
        pod = self.root / "pods" / f"{run}-{name}"
        pod.mkdir(parents=True, exist_ok=True)
        image = {"PYTHONPATH": str(self.image), "CONCORD_COMMIT": self.commit, "CONCORD_DVC_REMOTE": REMOTE}
        return self.python(*words[2:], cwd=pod, fails=fails, **{**image, **variables})

    def executor_input(self, name: str, run: str) -> dict[str, Any]:
        artifacts = {
            port: {"artifacts": [{"name": port, "uri": f"s3://mlpipeline/{run}/{name}/{port}"}]}
            for port in [*STEPS[name].outputs, "metrics"]
        }
        return {"inputs": {}, "outputs": {"artifacts": artifacts, "outputFile": str(self.told(name, run))}}

    def told(self, name: str, run: str) -> Path:
        return self.root / "told" / run / f"{name}.json"

    def clone(self, name: str) -> Path:
        self.call("git", "clone", "-q", str(self.upstream), str(self.root / name), cwd=self.root)
        return self.root / name


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    root = tmp_path_factory.mktemp("lineage")
    (root / "weed").mkdir()
    server = S3Server(root / "weed")
    try:
        yield _world(root, server)
    finally:
        server.end()


def _world(root: Path, server: S3Server) -> World:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "AWS_", "CONCORD_", "GIT_"))}
    variables = kept | environment(server.url, OWNER) | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{root}/mlflow.db",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }  # fmt: skip
    variables.pop("PYTHONPATH", None)
    made = World(root, root / "upstream", root / "image", variables)
    for path in ["dvc.yaml", ".dvcignore", ".gitignore", "pyproject.toml", "params.yaml", ".dvc/config", "components",
                 "pipelines"]:  # fmt: skip
        copy = shutil.copytree if (ROOT / path).is_dir() else shutil.copy
        (made.upstream / path).parent.mkdir(parents=True, exist_ok=True)
        copy(ROOT / path, made.upstream / path)
    shutil.copytree(made.upstream, made.image, ignore=shutil.ignore_patterns(".dvc", "__pycache__"))
    write_data(made.upstream / "data")
    write_params(made.upstream / "params.yaml", **SECTIONS)
    made.call("git", "init", "-q", cwd=made.upstream)
    made.python("dvc", "remote", "add", "-q", "--default", "there", REMOTE, cwd=made.upstream)
    made.python("dvc", "add", "-q", "data", cwd=made.upstream)
    made.python("dvc", "push", "-q", "data.dvc", cwd=made.upstream)
    made.call("git", "add", ".", cwd=made.upstream)
    made.call("git", "-c", "user.name=A", "-c", "user.email=a@b", "commit", "-qm", "The experiment", cwd=made.upstream)
    made.commit = made.call("git", "rev-parse", "HEAD", cwd=made.upstream).strip()
    return made


def test_a_run_of_the_pipeline_gives_back_a_dvc_lock(world: World) -> None:
    for name in STEPS:
        said = world.task(name, RUN)
        assert "pushed to s3://open/lineage: " in said
        assert OWNER[1] not in said
    told = {name: _told(world.told(name, RUN)) for name in STEPS}
    for name in STEPS:
        assert told[name]["out"]["dvc_hash"] == dvc_hash(world.places(name, RUN)["out"])
        assert told[name]["out"]["git_commit"] == world.commit
    assert told["grpo"]["out"]["dvc_hash.in.sft"] == told["sft"]["out"]["dvc_hash"]
    assert told["evaluate"]["report"]["dvc_nfiles"] > 1
    assert told["evaluate"]["metrics"]["grpo.groups.all.n"] == 101

    laptop = world.clone("laptop")
    said = world.python("pipelines", "lock", "--run", RUN, cwd=laptop)
    assert "dvc.lock: new for ingest, validate, sft, grpo, evaluate, register" in " ".join(said.split())
    world.python("dvc", "pull", "-q", cwd=laptop)
    assert json.loads(world.call("dvc", "status", "--json", cwd=laptop)) == {}
    assert (laptop / "reports" / "evaluate" / "report.html").exists()
    locked = (laptop / "dvc.lock").read_bytes()
    assert "Data and pipelines are up to date." in world.python("dvc", "repro", cwd=laptop)
    assert (laptop / "dvc.lock").read_bytes() == locked
    # The file is, byte for byte, what DVC writes of the same outputs.
    (laptop / "dvc.lock").unlink()
    world.python("dvc", "commit", "-q", "--force", cwd=laptop)
    assert (laptop / "dvc.lock").read_bytes() == locked

    write_params(laptop / "params.yaml", **SECTIONS, grpo={"beta": 0.05})
    dry = world.python("dvc", "repro", "--dry", cwd=laptop)
    assert re.findall(r"Running stage '(\w+)'", dry) == ["grpo", "evaluate", "register"]


def _told(file: Path) -> Mapping[str, Mapping[str, Any]]:
    """Artifact -> metadata, read by Kubeflow's own code."""
    found = executor_output_utils.load_executor_output(str(file)).artifacts
    return {name: dict(artifacts.artifacts[0].metadata) for name, artifacts in found.items()}
