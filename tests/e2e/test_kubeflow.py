"""The pipeline in containers: the image that a cluster would pull; PostgreSQL, S3 and MLflow in their own containers.

Kubeflow's own runner for this machine drives the compiled pipeline. On the way a training container is killed. Then the
run gives back a dvc.lock to a checkout that has nothing, and a checkout's `dvc repro` saves the pipeline its work.
"""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from components.register.message import WEBHOOK
from components.shared.tracking.hashes import dvc_hash
from components.shared.training.checkpoints import SEAL
from components.steps import STEPS
from tests.support.containers import run as docker
from tests.support.containers import services_of
from tests.support.gauge_world import TRAIN, scenes_of, write_params
from tests.support.repository import Repository, environment, write_repository
from tests.support.services import Services, s3_client
from tests.support.webhook import Webhook

STEPS_OF_GRPO = 40  # the last three quarters take seconds, in which the kill finds its place
SECTIONS: Mapping[str, Mapping[str, Any]] = {
    "validate": {"min_rows_per_shot": 1},
    "grpo": {"steps": STEPS_OF_GRPO, "checkpoint_every": 2},
    "evaluate": {"bootstrap": 50},
    "register": {"bootstrap": 50},
}
GROWN: Mapping[str, Any] = {"bootstrap": 50, "model": "grown"}
CHANGED = {**SECTIONS, "grpo": {"steps": 4, "checkpoint_every": 2, "beta": 0.05}}
MADE_BEFORE = re.compile(r"(\w+): fetched cached outputs of the same data, code and settings \(run (\w+)\)")
pytestmark = [pytest.mark.e2e, pytest.mark.docker, pytest.mark.timeout(2400)]


@dataclass
class Run:
    """A finished run of the pipeline.

    Attributes:
        id: Kubeflow's.
        folder: of its outputs and logs, a folder a step.
        record: its run.json.
        output: what it printed, with its containers' output.
    """

    id: str
    folder: Path
    record: dict[str, Any]
    output: str

    def artifact(self, step: str, name: str) -> dict[str, Any]:
        """Metadata that Kubeflow received for an artifact."""
        output = json.loads((self.folder / step / "executor_output.json").read_text(encoding="utf-8"))
        metadata: dict[str, Any] = output["artifacts"][name]["artifacts"][0]["metadata"]
        return metadata


@dataclass
class World:
    """The services, a repository whose DVC remote is theirs, the image."""

    services: Services
    repository: Repository
    image: str

    def start(self, checkout: Path, out: Path, *more: str, **variables: str) -> "subprocess.Popen[str]":
        """`python -m pipelines run`, in a checkout."""
        words = ["run", "--image", self.image, "--retries", "1", "--data", str(self.repository.path / "data"), *more]
        with open(out.with_suffix(".txt"), "w", encoding="utf-8") as file:
            return subprocess.Popen(
                [sys.executable, "-m", "pipelines", *words, "--out", str(out)],
                cwd=checkout, env={**self.repository.variables, **variables},
                stdout=file, stderr=subprocess.STDOUT, text=True,
            )  # fmt: skip

    def finish(self, process: "subprocess.Popen[str]", out: Path) -> Run:
        """Waits until it exits with 0."""
        code = process.wait()
        output = out.with_suffix(".txt").read_text(encoding="utf-8")
        assert code == 0, output[-8000:]
        (folder,) = out.glob("concord-training-*")
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        return Run(record["run_id"], folder, record, output)

    @property
    def mlflow(self) -> MlflowClient:
        return self.services.client()

    def step_runs(self, run_id: str) -> dict[str, list[Any]]:
        """Step -> its runs in MLflow below the pipeline's run, the oldest first."""
        mlflow = self.mlflow
        ids = [experiment.experiment_id for experiment in mlflow.search_experiments()]
        query = f"tags.`concord.pipeline_run` = '{run_id}' and tags.`concord.kind` = 'pipeline'"
        (parent,) = mlflow.search_runs(ids, query)
        below = mlflow.search_runs(
            ids, f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'", order_by=["attributes.start_time ASC"]
        )
        return {name: [run for run in below if run.data.tags["concord.step"] == name] for name in STEPS}

    def in_remote(self, md5: str) -> list[str]:
        """Files of a folder in the DVC remote; checks that each object exists."""
        client = s3_client(self.services.s3_url, self.services.dvc)
        listing = client.get_object(Bucket="dvc", Key=f"files/md5/{md5[:2]}/{md5[2:]}")["Body"].read()
        files = {entry["relpath"]: entry["md5"] for entry in json.loads(listing)}
        for found in files.values():
            client.head_object(Bucket="dvc", Key=f"files/md5/{found[:2]}/{found[2:]}")
        return list(files)


@pytest.fixture(scope="module")
def world(composition: dict[str, str], image: str, tmp_path_factory: pytest.TempPathFactory) -> World:
    services = services_of(composition)
    root = tmp_path_factory.mktemp("kubeflow")
    repository = write_repository(root / "upstream", environment(services.environment()), "s3://dvc", SECTIONS)
    return World(services, repository, image)


def kill_in_grpo(state: Path, process: "subprocess.Popen[str]") -> int:
    """Kills grpo's container (-9) after a quarter of its steps; returns the step of the newest complete checkpoint."""
    listing = ("docker", "ps", "--quiet", "--filter", "label=concord.step=grpo", "--filter", "label=concord.run")
    while not (container := docker(*listing)):
        assert process.poll() is None, "grpo never started"
        time.sleep(0.2)
    while newest_checkpoint(state) < STEPS_OF_GRPO // 4:
        assert process.poll() is None, "grpo left no checkpoints"
        time.sleep(0.005)
    docker("docker", "kill", "--signal", "KILL", container)
    return newest_checkpoint(state)


def newest_checkpoint(state: Path) -> int:
    """Its step; 0 where there is none."""
    seals = state.glob(f"grpo/*/checkpoint-*/{SEAL}")
    return max((int(seal.parent.name.rpartition("-")[2]) for seal in seals), default=0)


@pytest.fixture(scope="module")
def killed(world: World) -> Iterator[tuple[Run, int]]:
    """A run whose grpo was killed, and the step of the checkpoint that the kill left."""
    out = world.repository.path.parent / "killed"
    process = world.start(world.repository.path, out)
    try:
        step = kill_in_grpo(out / ".checkpoints", process)
        yield world.finish(process, out), step
    finally:
        process.terminate()
        process.wait()


def served_weights(run: Run) -> str:
    """DVC hash of the weights that a run registered: those of the warm start or of the trained model."""
    registration = json.loads((run.folder / "register" / "out" / "registration.json").read_text(encoding="utf-8"))
    return str(run.record["outputs"][registration["served"].partition(".")[0]]["out"]["dvc_hash"])


@pytest.fixture(scope="module")
def laptop(world: World, killed: tuple[Run, int]) -> Path:
    """An empty clone after `lock --run` and `dvc pull`."""
    place = world.repository.clone("laptop")
    world.repository.call(sys.executable, "-m", "pipelines", "lock", "--run", killed[0].id, cwd=place)
    world.repository.dvc("pull", "-q", cwd=place)
    return place


def test_a_killed_training_resumes_from_its_checkpoint(world: World, killed: tuple[Run, int]) -> None:
    run, step = killed
    assert STEPS_OF_GRPO // 4 <= step < STEPS_OF_GRPO
    ends = [(each["step"], each["exit_code"]) for each in run.record["attempts"]]
    assert ends == [
        ("ingest", 0), ("validate", 0), ("sft", 0), ("grpo", 137), ("grpo", 0), ("evaluate", 0), ("register", 0),
    ]  # fmt: skip
    first, second = world.step_runs(run.id)["grpo"]
    assert (first.info.status, second.info.status) == ("KILLED", "FINISHED")
    curve = world.mlflow.get_metric_history(second.info.run_id, "loss")
    assert sorted({point.step for point in curve if point.step}) == list(range(step + 1, STEPS_OF_GRPO + 1))


def test_outputs_are_complete_and_reported_to_kubeflow(killed: tuple[Run, int]) -> None:
    run, _ = killed
    assert run.record["done"] is True
    for name, step in STEPS.items():
        for port in step.outputs:
            digest = dvc_hash(run.folder / name / port)
            record = run.artifact(name, port)
            assert run.record["outputs"][name][port]["dvc_hash"] == record["dvc_hash"] == digest
            for given in set(step.inputs) & set(STEPS):
                assert record[f"dvc_hash.in.{given}"] == run.record["outputs"][given]["out"]["dvc_hash"]
    assert run.artifact("evaluate", "metrics")["grpo.text.groups.all.n"] == 101
    assert "grpo.text.groups.few.mae" in run.artifact("evaluate", "metrics")
    assert (run.folder / "evaluate" / "page").read_text(encoding="utf-8").count("<html") == 1


def test_every_step_is_in_mlflow_and_its_outputs_in_the_remote(
    world: World, killed: tuple[Run, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = killed
    for name, value in world.services.environment().items():  # requests for artifacts take the login from there alone
        monkeypatch.setenv(name, value)
    for name, runs in world.step_runs(run.id).items():
        tags = runs[-1].data.tags
        assert tags["concord.pipeline_run"] == run.id
        assert tags["concord.remote"] == "s3://dvc"
        assert run.artifact(name, "out")["mlflow_run_id"] == runs[-1].info.run_id
        for port, kept in run.record["outputs"][name].items():
            assert tags[f"concord.out.{port}"] == kept["dvc_hash"]
            assert world.in_remote(kept["dvc_hash"])
    assert "model.safetensors" in world.in_remote(run.record["outputs"]["grpo"]["out"]["dvc_hash"])
    (evaluated,) = world.step_runs(run.id)["evaluate"]
    shown = [file.path for file in world.mlflow.list_artifacts(evaluated.info.run_id, "report")]
    assert "report/report.html" in shown, "handed through MLflow's server into its bucket"


def test_the_registry_has_the_version_with_its_ancestry(world: World, killed: tuple[Run, int]) -> None:
    run, _ = killed
    words = ["-m", "components", "registry", "show", "--version", "1"]
    shown = " ".join(world.repository.call(sys.executable, *words, cwd=world.repository.path).split())
    assert f"Kubeflow run {run.id}" in shown
    assert f"raw data {run.record['data_hash']}" in shown
    for name in list(STEPS)[:-1]:
        for port, kept in run.record["outputs"][name].items():
            assert f"{name} out {port} {kept['dvc_hash']}" in shown


def test_an_empty_clone_is_up_to_date_after_lock_and_pull(world: World, killed: tuple[Run, int], laptop: Path) -> None:
    run, _ = killed
    assert json.loads(world.repository.dvc("status", "--json", cwd=laptop)) == {}
    assert "Data and pipelines are up to date." in world.repository.dvc("repro", cwd=laptop)
    assert dvc_hash(laptop / "artifacts" / "grpo") == run.record["outputs"]["grpo"]["out"]["dvc_hash"]
    assert "nothing new" in world.repository.call(
        sys.executable, "-m", "pipelines", "lock", "--run", run.id, cwd=laptop
    )


def test_dvc_repro_runs_the_changed_steps_and_the_pipeline_fetches_their_outputs(
    world: World, killed: tuple[Run, int], laptop: Path
) -> None:
    run, _ = killed
    write_params(laptop / "params.yaml", **CHANGED)
    output = world.repository.dvc("repro", cwd=laptop)
    assert re.findall(r"Running stage '(\w+)'", output) == ["grpo", "evaluate", "register"]
    world.repository.dvc("push", "-q", cwd=laptop)

    out = world.repository.path.parent / "after"
    again = world.finish(world.start(laptop, out), out)
    made_by = dict(MADE_BEFORE.findall(again.output))
    assert list(made_by) == ["ingest", "sft", "grpo", "evaluate"], "not what looks at today's champion"
    by_pipeline = {name: runs[-1].info.run_id for name, runs in world.step_runs(run.id).items()}
    assert {name: made_by[name] for name in ("ingest", "sft")} == {
        name: by_pipeline[name] for name in ("ingest", "sft")
    }
    for name in ("grpo", "evaluate"):
        assert "concord.pipeline_run" not in world.mlflow.get_run(made_by[name]).data.tags, "dvc repro's"
        assert again.record["outputs"][name]["out"]["dvc_hash"] == dvc_hash(laptop / "artifacts" / name)
    versions = world.mlflow.search_model_versions()
    assert len(versions) == len({served_weights(run), served_weights(again)}), "the same weights are the same version"
    output = world.repository.call(sys.executable, "-m", "pipelines", "lock", "--run", again.id, cwd=laptop)
    assert "dvc.lock: new for register, from run" in output


def test_a_schedule_trains_on_the_newest_data_and_reports_to_a_webhook(world: World) -> None:
    """What each start of a schedule does: three versions that grow, and one start that finds nothing new."""
    place = world.repository.clone("schedule")
    write_params(place / "params.yaml", **{**SECTIONS, "grpo": CHANGED["grpo"], "register": GROWN})
    client = s3_client(world.services.s3_url, world.services.dvc)
    made_before, versions = [], []
    with Webhook() as chat:
        for number, (version, factor) in enumerate(((1, 2), (1, 2), (2, 3), (3, 4))):
            scenes = scenes_of({reading: factor * count for reading, count in TRAIN.items()})
            client.put_object(Bucket="dvc", Key=f"raw/gauges-{version}/scenes.csv", Body=scenes)
            out = place.parent / f"start-{number}"
            words = ("--data-uri", "s3://dvc/raw/gauges-*", "--env", WEBHOOK)
            run = world.finish(world.start(place, out, *words, **{WEBHOOK: chat.url}), out)
            made_before.append([step for step, _ in MADE_BEFORE.findall(run.output)])
            versions.append((run.folder / "newest" / "uri").read_text())
            assert chat.url not in run.output
    assert versions == [f"s3://dvc/raw/gauges-{version}" for version in (1, 1, 2, 3)]
    assert made_before == [[], ["ingest", "sft", "grpo", "evaluate"], [], []]
    sentences = [body["text"] for body in chat.bodies]
    assert len(sentences) == 4
    assert all(f": {GROWN['model']} version " in sentence for sentence in sentences)
    assert sentences[0].partition(" (")[0] == sentences[1].partition(" (")[0], "the same version"
    assert {sentence.partition(" version ")[2][0] for sentence in sentences} == {"1", "2", "3"}
