"""The image of the steps: its contents, and that a step in it gives the same output as outside."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from kfp.local import placeholder_utils

from components.__main__ import main
from components.settings import load_settings
from components.shared.tracking.hashes import dvc_hash
from pipelines.cluster_settings import Cluster, load_cluster
from pipelines.compile import compile_pipeline
from tests.support.containers import BASE, ROOT, run
from tests.support.locks import IMAGE, needed_here
from tests.support.raw_folder import RawFolder, content, write_params
from tests.support.s3_server import READER, S3Server, environment

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800)]

# As on a strict cluster: no root, a user that the image does not know, only /tmp writable.
HARDENED = ["--rm", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
UNKNOWN_USER = ["--user", "12345:12345"]


def inspected(tag: str) -> dict:
    return json.loads(run("docker", "image", "inspect", tag))[0]


def run_in_image(image: str, *command: str, options: tuple[str, ...] = ()) -> str:
    return run("docker", "run", *HARDENED, "--network", "none", *options, image, *command)


def test_any_user_can_run_the_command_line_on_a_read_only_root(image: str) -> None:
    for user in ([], UNKNOWN_USER):
        output = run_in_image(image, options=tuple(user))
        assert "python -m components" in output
        assert "register" in output


def test_user_and_labels(image: str) -> None:
    config = inspected(image)["Config"]
    assert config["User"] == "10001:0"
    commit = run("git", "rev-parse", "HEAD")
    labels = config["Labels"]
    assert labels["org.opencontainers.image.revision"].removesuffix("-dirty") == commit
    assert labels["org.opencontainers.image.version"] == "0.1.0"
    assert f"CONCORD_COMMIT={labels['org.opencontainers.image.revision']}" in config["Env"]


def test_image_has_no_compiler_cache_tool_or_secret(image: str) -> None:
    code = """
import importlib.util, json, pathlib, shutil
print(json.dumps({
    "programs": [p for p in "cc gcc g++ clang make ld as pip pip3 git mypy ruff weed".split() if shutil.which(p)],
    "modules": [m for m in "kfp pytest mypy ruff pip hypothesis".split() if importlib.util.find_spec(m)],
    "missing": [m for m in "torch transformers trl mlflow dvc dvc_s3 boto3 psycopg kubernetes".split()
                if not importlib.util.find_spec(m)],
    "left": [str(p) for d in ("/root/.cache", "/var/lib/apt/lists", "/var/cache/apt", "/run/secrets", "/wheels",
             "/requirements.lock") for p in pathlib.Path(d).rglob("*") if p.is_file()],
}))
"""
    contents = json.loads(run_in_image(image, "python", "-c", code, options=("--user", "0")))
    assert contents == {"programs": [], "modules": [], "missing": [], "left": []}


def test_installed_packages_are_those_of_the_lock(image: str) -> None:
    code = "import importlib.metadata as m; print(*(f'{d.name}=={d.version}' for d in m.distributions()), sep='\\n')"
    locked = {normalized(f"{pin.requirement.name}=={pin.version}") for pin in needed_here(IMAGE)}
    installed = {normalized(line.partition("+")[0]) for line in run_in_image(image, "python", "-c", code).splitlines()}
    assert installed == locked


def normalized(line: str) -> str:
    name, _, version = line.partition("==")
    return f"{name.lower().replace('_', '-').replace('.', '-')}=={version}"


@pytest.fixture(scope="module")
def changed_image(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An image of changed code with another project version, from files with the modes of umask 027."""
    tmp_path = tmp_path_factory.mktemp("changed")
    for name in run("git", "ls-files", "--cached", "--others", "--exclude-standard").splitlines():
        if (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tmp_path / name)
    for wheel in (ROOT / "docker" / "wheels").glob("*.whl"):
        os.link(wheel, tmp_path / "docker" / "wheels" / wheel.name)
    (tmp_path / "components" / "steps.py").write_text("# changed\n" + (ROOT / "components" / "steps.py").read_text())
    project = (tmp_path / "pyproject.toml").read_text()
    (tmp_path / "pyproject.toml").write_text(project.replace('version = "0.1.0"', 'version = "0.2.0"'))
    # The dependencies' files keep their modes, which are part of the build's cache key.
    for path in (tmp_path / "components", *(tmp_path / "components").rglob("*"), *tmp_path.glob("*.yaml")):
        path.chmod(0o750 if path.is_dir() else 0o640)
    tag = f"concord:test-changed-{os.getpid()}"  # two processes may test the image at once
    run(str(tmp_path / "docker" / "build"), "cpu", "--base", BASE, "--tag", tag)
    try:
        yield tag
    finally:
        run("docker", "rmi", tag)


def test_any_user_can_read_an_image_built_with_any_umask(changed_image: str) -> None:
    options = tuple(UNKNOWN_USER)
    assert run_in_image(changed_image, "find", "/app", "!", "-readable", options=options) == ""
    assert "register" in run_in_image(changed_image, "python", "-m", "components", "--help", options=options)


def test_code_change_keeps_the_dependency_layers(image: str, changed_image: str) -> None:
    """So does a change of the project's version. A push or pull then transfers a megabyte, not two gigabytes."""
    layers = [inspected(tag)["RootFS"]["Layers"] for tag in (image, changed_image)]
    assert inspected(changed_image)["Config"]["Labels"]["org.opencontainers.image.version"] == "0.2.0"
    sizes = layer_sizes(changed_image)
    changed = sum(old != new for old, new in zip(*layers, strict=True))
    assert changed
    assert sum(sizes[:changed]) < 5_000_000 < 1_000_000_000 < sum(sizes)


def layer_sizes(tag: str) -> list[int]:
    """Returns the layers' sizes in bytes, top first. Lines of the history without a layer are skipped."""
    lines = run("docker", "history", "--human=false", "--format", "{{.Size}} {{.CreatedBy}}", tag).splitlines()
    without_layer = ("ARG", "CMD", "ENV", "ENTRYPOINT", "LABEL", "USER")
    return [int(line.split()[0]) for line in lines if not line.partition(" ")[2].startswith(without_layer)]


def test_step_in_the_image_gives_the_same_output_as_here(
    image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o755)
    RawFolder(tmp_path / "data")
    write_params(tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    assert main(["ingest", "--params", "params.yaml", "--data", "data", "--out", "here"]) == 0
    (tmp_path / "out").mkdir()
    (tmp_path / "out").chmod(0o777)
    run_in_image(
        image, "python", "-m", "components", "ingest", "--params", "/work/params.yaml", "--data", "/work/data",
        "--out", "/work/out/there",
        options=(*UNKNOWN_USER, "-e", "MLFLOW_TRACKING_URI=sqlite:////tmp/mlflow.db", "-w", "/tmp",
                 "-v", f"{tmp_path}:/work:ro", "-v", f"{tmp_path / 'out'}:/work/out"),
    )  # fmt: skip
    assert dvc_hash(tmp_path / "out" / "there") == dvc_hash(tmp_path / "here")


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """An S3 server with a key for only one bucket, which is not the one of the pipeline's outputs."""
    server = S3Server(tmp_path_factory.mktemp("weed"))
    yield server
    server.end()


def ingest_on_kubeflow(
    image: str, cluster: Cluster, params: Path, data: str, data_hash: str, out: Path, url: str
) -> tuple[int, str]:
    """Runs ingest's container with the compiled pipeline's command, environment and user.

    Returns:
        Exit code, and the output as one line.
    """
    compile_pipeline(load_settings(params), cluster, image, data_hash, out / "pipeline.yaml")
    spec = next(yaml.safe_load_all((out / "pipeline.yaml").read_text(encoding="utf-8")))
    container = spec["deploymentSpec"]["executors"]["exec-ingest"]["container"]
    inputs = spec["root"]["inputDefinitions"]["parameters"]
    values = {name: value.get("defaultValue", data) for name, value in inputs.items()}
    executor_inputs = {"parameterValues": {"code": "none", **values}}
    artifacts = {name: {"artifacts": [{"name": name, "uri": f"/out/{name}"}]} for name in ("out", "metrics")}
    executor_input = {"inputs": executor_inputs, "outputs": {"artifacts": artifacts, "outputFile": "/out/output.json"}}
    step_command = placeholder_utils.replace_placeholders(
        container["command"] + container["args"], executor_input, "training", "ingest", "/root", "run"
    )
    variables = {variable["name"]: variable["value"] for variable in container["env"]} | environment(url, READER)
    variables["MLFLOW_TRACKING_URI"] = "sqlite:////tmp/mlflow.db"
    del variables["CONCORD_DVC_REMOTE"]  # set in the default cluster file, but there is no such remote here
    env_args = [arg for name, value in variables.items() for arg in ("-e", f"{name}={value}")]
    # Without a server, MLflow writes artifacts to the working directory, which is otherwise read-only.
    mounts = ["--tmpfs", "/app/mlruns:mode=777", "-v", f"{out}:/out"]
    command = ["docker", "run", *HARDENED, "--network", "host", "--user", "10001:0", *env_args, *mounts]
    done = subprocess.run([*command, image, *step_command], capture_output=True, text=True, check=False)
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def test_ingest_on_kubeflow_fetches_data_from_a_separate_bucket(image: str, bucket: S3Server, tmp_path: Path) -> None:
    raw = RawFolder(tmp_path / "data")
    for name, body in content(raw.folder).items():
        bucket.put(f"plant/1/{name}", body)
    params, out, digest = tmp_path / "params.yaml", tmp_path / "out", dvc_hash(raw.folder)
    write_params(params)
    cluster = load_cluster()
    out.mkdir()
    out.chmod(0o777)
    code, output = ingest_on_kubeflow(image, cluster, params, "minio://open/plant/1", digest, out, bucket.url)
    assert code == 0, output
    assert "s3://open/plant/1: 70 objects" in output
    assert json.loads((out / "output.json").read_text())["artifacts"]["out"]["artifacts"][0]["metadata"][
        "dvc_hash"
    ] == dvc_hash(out / "out")
    assert content(out / "out").keys() >= {"metrics.json", "histogram.csv"}

    code, output = ingest_on_kubeflow(image, cluster, params, "s3://open/plant/2", digest, out, bucket.url)
    assert code == 1
    assert "s3://open/plant/2: empty: no object in bucket open" in output
    assert "make data" not in output
    code, output = ingest_on_kubeflow(image, cluster, params, "s3://closed/plant", digest, out, bucket.url)
    assert code == 1
    assert "refuses access (403 AccessDenied)" in output

    cluster = cluster.model_copy(update={"scratch": "32K"})
    code, output = ingest_on_kubeflow(image, cluster, params, "s3://open/plant/1", digest, out, bucket.url)
    assert code == 1
    assert "must be fetched, but the cache /tmp/concord-cache has" in output
    assert "on Kubeflow it follows from `scratch` in the cluster file" in output
