"""A run of the pipeline yields a dvc.lock and reuses cached outputs: steps as Kubeflow starts them, then checkouts.

Real DVC, real MLflow, a real S3 server. Kubeflow's part is played by the test: its paths, its executor input, the
settings as sections, the code of an image without repository. Checkouts are fresh clones.
"""

import json
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.repo import Repo
from kfp.local import executor_output_utils

from components.commands.registry import command
from components.errors import ConcordError
from components.shared.tracking.connection import connect
from components.shared.tracking.hashes import dvc_hash
from components.shared.tracking.lineage import code_fingerprint, code_identity
from components.steps import STEPS
from pipelines.lock import raw_hash, write_lock
from tests.support.gauge_world import write_params
from tests.support.repository import Repository, environment, write_code, write_repository
from tests.support.s3_server import OWNER, S3Server, client
from tests.support.s3_server import environment as s3_environment

REMOTE = "s3://open/lineage"
RUN, AGAIN = "6b1c2f1e-0d5b-4a57-9d0e-000000000001", "6b1c2f1e-0d5b-4a57-9d0e-000000000002"
SECTIONS: Mapping[str, Mapping[str, Any]] = {
    "validate": {"min_rows_per_shot": 1},
    "evaluate": {"bootstrap": 50},
    "register": {"bootstrap": 50},
}
# Several containers in one process: a minute of imports less.
CHAIN = (
    "import json, sys; from components.__main__ import main\n"
    "for words in json.loads(sys.argv[1]):\n    if code := main(words): sys.exit(code)"
)
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


@dataclass
class World(Repository):
    """A repository with its data pushed, the image made of it, an MLflow store, a remote.

    Attributes:
        commit: of the repository and of the image.
    """

    commit: str = ""

    @property
    def root(self) -> Path:
        """The folder that holds everything."""
        return self.path.parent

    @property
    def image(self) -> Path:
        """The code as in an image: no .git, no .dvc, and the params.yaml of another experiment."""
        return self.root / "image"

    def outputs(self, step: str, run: str) -> dict[str, Path]:
        """Folder of a step's outputs on Kubeflow."""
        folder = self.root / "s3" / "mlpipeline" / run / step
        return {port: folder / port for port in STEPS[step].outputs}

    def words(self, name: str, run: str, inputs_of: str, settings: Path) -> list[str]:
        """Arguments of a step's container, after `python -m components`."""
        step, outputs = STEPS[name], self.outputs(name, run)
        made = {port: self.outputs(port, inputs_of)["out"] for port in step.inputs if port in STEPS}
        raw = {"data": self.path / "data"} if "data" in step.inputs else {}
        paths = {port: str(path) for port, path in {**made, **raw, **outputs}.items()}
        content = yaml.safe_load(settings.read_text(encoding="utf-8"))
        words = step.command(str(self.image / "params.yaml"), paths)[3:]
        code = code_fingerprint(code_identity(STEPS[name], self.path))  # of the checkout that compiles
        words += ["--code", code, "--experiment", content["experiment"], "--pipeline-run", run]
        for section in step.sections:
            words += ["--section", section, json.dumps(content[section])]
        artifacts = {
            port: {"artifacts": [{"name": port, "uri": f"s3://mlpipeline/{run}/{name}/{port}"}]}
            for port in [*outputs, "metrics"]
        }
        report = {"inputs": {}, "outputs": {"artifacts": artifacts, "outputFile": str(self.report_file(name, run))}}
        return [*words, "--executor-input", json.dumps(report)]

    def tasks(
        self, names: list[str], run: str, inputs_of: str = "", settings: Path | None = None, **variables: str
    ) -> str:
        """Runs steps as their containers do and returns their output. `inputs_of`: the run whose outputs they read."""
        settings = settings or self.path / "params.yaml"
        words = [self.words(name, run, inputs_of or run, settings) for name in names]
        start = ["-m", "components", *words[0]] if len(words) == 1 else ["-c", CHAIN, json.dumps(words)]
        image = {"PYTHONPATH": str(self.image), "CONCORD_COMMIT": self.commit, "CONCORD_DVC_REMOTE": REMOTE}
        pod = self.root / "pods" / f"{run}-{names[0]}"
        pod.mkdir(parents=True, exist_ok=True)
        return self.call(sys.executable, *start, cwd=pod, **image, **variables)

    def report_file(self, name: str, run: str) -> Path:
        return self.root / "report" / run / f"{name}.json"

    def report(self, name: str, run: str) -> dict[str, dict[str, Any]]:
        """Artifact -> metadata, read by Kubeflow's own code."""
        found = executor_output_utils.load_executor_output(str(self.report_file(name, run))).artifacts
        return {port: dict(artifacts.artifacts[0].metadata) for port, artifacts in found.items()}


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
    store = {"MLFLOW_TRACKING_URI": f"sqlite:///{root}/mlflow.db"}
    variables = environment(s3_environment(server.url, OWNER) | store)
    made = write_repository(root / "upstream", variables, REMOTE, SECTIONS)
    world = World(made.path, made.variables)
    write_code(world.image)
    world.commit = world.call("git", "rev-parse", "HEAD", cwd=world.path).strip()
    return world


@pytest.fixture(scope="module")
def output(world: World) -> str:
    """Output of a run of all steps."""
    return world.tasks(["ingest"], RUN) + world.tasks(list(STEPS)[1:], RUN)


@pytest.fixture
def store(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run's MLflow, for this process."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", world.variables["MLFLOW_TRACKING_URI"])


def test_every_step_stores_hashes_and_pushes_below_one_parent_run(world: World, output: str, store: None) -> None:
    assert output.count("pushed to s3://open/lineage: ") == len(STEPS)
    assert OWNER[1] not in output
    report = {name: world.report(name, RUN) for name in STEPS}
    for name in STEPS:
        for port, path in world.outputs(name, RUN).items():
            assert report[name][port]["dvc_hash"] == dvc_hash(path)
            assert report[name][port]["git_commit"] == world.commit
    assert report["grpo"]["out"]["dvc_hash.in.sft"] == report["sft"]["out"]["dvc_hash"]
    assert report["evaluate"]["report"]["dvc_nfiles"] > 1
    assert report["evaluate"]["metrics"]["grpo.text.groups.all.n"] == 101
    mlflow = connect()
    (parent,) = mlflow.search_runs(["1"], f"tags.`concord.pipeline_run` = '{RUN}' and tags.`concord.kind` = 'pipeline'")
    assert parent.info.status == "FINISHED"
    assert parent.data.params["sft.max_steps"] == "6", "not those of the image's params.yaml"
    below = mlflow.search_runs(["1"], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert {run.data.tags["concord.step"]: run.data.tags["mlflow.source.git.commit"] for run in below} == dict.fromkeys(
        STEPS, world.commit
    )


def test_an_empty_clone_is_up_to_date_after_lock_and_pull(world: World, output: str) -> None:
    laptop = world.clone("laptop")
    report = world.call(sys.executable, "-m", "pipelines", "lock", "--run", RUN, cwd=laptop)
    assert "dvc.lock: new for ingest, validate, sft, grpo, evaluate, register" in " ".join(report.split())
    world.dvc("pull", "-q", cwd=laptop)
    assert json.loads(world.dvc("status", "--json", cwd=laptop)) == {}
    assert (laptop / "reports" / "evaluate" / "report.html").exists()
    locked = (laptop / "dvc.lock").read_bytes()
    report = world.call(sys.executable, "-m", "pipelines", "lock", "--run", RUN, cwd=laptop)
    assert "dvc.lock: nothing new" in report
    assert (laptop / "dvc.lock").read_bytes() == locked
    assert "Data and pipelines are up to date." in world.dvc("repro", cwd=laptop)
    # It is, byte for byte, what DVC itself writes of the same outputs.
    (laptop / "dvc.lock").unlink()
    world.dvc("commit", "-q", "--force", cwd=laptop)
    assert (laptop / "dvc.lock").read_bytes() == locked
    write_params(laptop / "params.yaml", **SECTIONS, grpo={"beta": 0.05})
    # In a dry run nothing is made, so that what follows a change must be asked for.
    dry = world.dvc("repro", "--dry", "--force-downstream", cwd=laptop)
    assert re.findall(r"Running stage '(\w+)'", dry) == ["grpo", "evaluate", "register"]


def test_lock_is_refused_for_other_code_params_or_data_and_names_each_difference(
    world: World, output: str, store: None
) -> None:
    other = world.clone("other")
    with open(other / "components" / "grpo" / "trainer.py", "a", encoding="utf-8") as file:
        file.write("# changed\n")
    write_params(other / "params.yaml", **SECTIONS, sft={"lr": 0.5})
    pointer = other / "data.dvc"
    pointer.write_text(re.sub("md5: [0-9a-f]{32}", f"md5: {'0' * 32}", pointer.read_text()), encoding="utf-8")
    with pytest.raises(ConcordError) as caught:
        write_lock(RUN, other)
    message = str(caught.value)
    data = dvc_hash(world.path / "data")
    assert f"ingest: data data: {data} in the run, {'0' * 32}.dir here" in message
    assert "sft: params sft.lr: 0.001 in the run, 0.5 here" in message
    assert re.search(r"grpo: code components/grpo: \w{32}\.dir in the run, \w{32}\.dir here", message)
    assert "evaluate: params sft.lr: 0.001 in the run, 0.5 here" in message, "it reads that section as well"
    assert len(re.findall(r"^  ", message, re.MULTILINE)) == 4, message
    assert f"The run is of commit {world.commit}." in message
    assert not (other / "dvc.lock").exists()


def test_lock_is_refused_for_a_missing_or_unfinished_run(world: World, output: str, store: None) -> None:
    with pytest.raises(ConcordError, match=r"nobody: no run with this id in MLflow"):
        write_lock("nobody", world.path)
    mlflow = connect()
    parent = mlflow.create_run("1", tags={"concord.pipeline_run": "half"})
    with pytest.raises(ConcordError, match="has no steps below it"):
        write_lock("half", world.path)
    for name, status in (("ingest", "FAILED"), ("validate", "RUNNING")):
        tags = {"mlflow.parentRunId": parent.info.run_id, "concord.step": name}
        mlflow.set_terminated(mlflow.create_run("1", tags=tags).info.run_id, status)
    with pytest.raises(ConcordError, match=r"step ingest: its run is FAILED") as caught:
        write_lock("half", world.path)
    assert "step validate: its run is RUNNING" in str(caught.value)
    assert "step sft: it has no run" in str(caught.value)
    assert not (world.path / "dvc.lock").exists()


def test_a_version_shows_its_whole_ancestry(
    world: World, output: str, store: None, capsys: pytest.CaptureFixture[str]
) -> None:
    command.main(["show", "--version", "1", "--params", str(world.path / "params.yaml")])
    flat = " ".join(capsys.readouterr().out.split())
    assert f"raw data {dvc_hash(world.path / 'data')}" in flat
    assert f"commit {world.commit}" in flat
    assert f"Kubeflow run {RUN}" in flat
    for name in list(STEPS)[:-1]:
        for port in STEPS[name].outputs:
            report = world.report(name, RUN)[port]
            content = f"{report['dvc_hash']} {report['dvc_size']:,.0f} {report['dvc_nfiles']:.0f}"
            assert f"{name} out {port} {content}" in flat
        assert f"{name} {world.report(name, RUN)['out']['mlflow_run_id']} {world.commit[:8]}" in flat
    assert "max_steps 6," in flat, "the params that the run's steps saw"
    assert "not met: against the greedy text of the SFT warm start" in flat, "nothing is learnt in six steps"
    assert "few-shot MAE" in flat


def test_the_next_run_fetches_equal_outputs(world: World, output: str, store: None) -> None:
    report = world.tasks(["sft", "evaluate"], AGAIN, inputs_of=RUN)
    first = {name: world.report(name, RUN)["out"]["mlflow_run_id"] for name in ("sft", "evaluate")}
    mlflow = connect()
    for name, run_id in first.items():
        assert f"{name}: fetched cached outputs of the same data, code and settings (run {run_id})" in report
        assert world.report(name, AGAIN)["out"]["reused"] == f"run {run_id}"
        for port, path in world.outputs(name, AGAIN).items():
            assert dvc_hash(path) == dvc_hash(world.outputs(name, RUN)[port])
        fetched = mlflow.get_run(world.report(name, AGAIN)["out"]["mlflow_run_id"])
        assert fetched.data.tags["concord.reused"] == f"run {run_id}"
        assert fetched.data.metrics == mlflow.get_run(run_id).data.metrics if name == "evaluate" else True
    shown = [file.path for file in mlflow.list_artifacts(fetched.info.run_id, "report")]
    assert "report/report.html" in shown
    # A step that Kubeflow took from its cache has no run of its own: the lock finds the one that made it.
    for name in ("ingest", "validate", "grpo", "register"):
        assert name not in report
    with pytest.raises(ConcordError, match=r"step register: it has no run") as caught:
        write_lock(AGAIN, world.path)
    assert "step ingest" not in str(caught.value)
    assert "step grpo" not in str(caught.value)


def test_with_the_cache_off_equal_outputs_are_computed_again(world: World, output: str) -> None:
    report = world.tasks(["ingest"], "no-cache", CONCORD_REUSE="off")
    assert "cached outputs" not in report
    assert world.report("ingest", "no-cache")["out"]["reused"] == ""
    assert dvc_hash(world.outputs("ingest", "no-cache")["out"]) == dvc_hash(world.outputs("ingest", RUN)["out"])


def test_outputs_of_dvc_repro_and_dvc_push_are_fetched(world: World) -> None:
    desk = world.clone("desk")
    shutil.copytree(world.path / "data", desk / "data")
    write_params(desk / "params.yaml", **{**SECTIONS, "ingest": {"image_size": 24}})
    alone = {"MLFLOW_TRACKING_URI": f"sqlite:///{world.root}/desk.db"}  # a laptop's own, which the cluster cannot see
    world.dvc("repro", "-q", "ingest", cwd=desk, **alone)
    world.dvc("push", "-q", cwd=desk)
    shutil.copy(desk / "dvc.lock", world.image)
    try:
        report = world.tasks(["ingest"], "desk-run", settings=desk / "params.yaml")
    finally:
        (world.image / "dvc.lock").unlink()
    assert "ingest: fetched cached outputs of the same data, code and settings (dvc.lock)" in report
    assert dvc_hash(world.outputs("ingest", "desk-run")["out"]) == dvc_hash(desk / "artifacts" / "ingest")


def test_raw_input_in_a_bucket_is_compared_by_content(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """dvc.lock holds ETags, the run a hash of the content."""
    for name, value in s3_environment(world.variables["AWS_ENDPOINT_URL"], OWNER).items():
        monkeypatch.setenv(name, value)
    owner = client(world.variables["AWS_ENDPOINT_URL"], OWNER)
    (tmp_path / "raw" / "deep").mkdir(parents=True)
    for name in ("a.csv", "deep/b.png"):
        (tmp_path / "raw" / name).write_text(name)
        owner.put_object(Bucket="open", Key=f"raw/{name}", Body=name.encode())
    (tmp_path / "dvc.yaml").write_text("stages: {ingest: {cmd: make, deps: ['s3://open/raw'], outs: [out]}}")
    with Repo.init(str(tmp_path), no_scm=True) as repo:
        (stage,) = repo.index.stages
        assert raw_hash(repo, stage.deps[0]) == dvc_hash(tmp_path / "raw")
