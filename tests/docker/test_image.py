"""The image of the steps: what is in it, what is not, and that a step in it makes what it makes outside."""

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
from tests.support.raw_folder import RawFolder, content, write_params
from tests.support.s3_server import READER, S3Server, environment

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800)]

# What a cluster that trusts nobody does: no root, a user that the image does not know, nothing to write on but /tmp.
HARDENED = ["--rm", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
STRANGER = ["--user", "12345:12345"]


def inspected(tag: str) -> dict:
    return json.loads(run("docker", "image", "inspect", tag))[0]


def in_image(image: str, *words: str, options: tuple[str, ...] = ()) -> str:
    return run("docker", "run", *HARDENED, "--network", "none", *options, image, *words)


def test_the_command_line_runs_for_any_user_on_a_read_only_root(image: str) -> None:
    for user in ([], STRANGER):
        said = in_image(image, options=tuple(user))
        assert "python -m components" in said
        assert "register" in said


def test_user_and_labels(image: str) -> None:
    config = inspected(image)["Config"]
    assert config["User"] == "10001:0"
    commit = run("git", "rev-parse", "HEAD")
    labels = config["Labels"]
    assert labels["org.opencontainers.image.revision"].removesuffix("-dirty") == commit
    assert labels["org.opencontainers.image.version"] == "0.1.0"
    assert f"CONCORD_COMMIT={labels['org.opencontainers.image.revision']}" in config["Env"]


def test_no_compiler_no_cache_no_tool_no_secret(image: str) -> None:
    code = """
import importlib.util, json, pathlib, shutil
print(json.dumps({
    "programs": [p for p in "cc gcc g++ clang make ld as pip pip3 git mypy ruff weed".split() if shutil.which(p)],
    "modules": [m for m in "kfp kubernetes pytest mypy ruff pip hypothesis".split() if importlib.util.find_spec(m)],
    "missing": [m for m in "torch transformers trl mlflow dvc dvc_s3 boto3 psycopg".split()
                if not importlib.util.find_spec(m)],
    "left": [str(p) for d in ("/root/.cache", "/var/lib/apt/lists", "/var/cache/apt", "/run/secrets", "/wheels",
             "/requirements.lock") for p in pathlib.Path(d).rglob("*") if p.is_file()],
}))
"""
    found = json.loads(in_image(image, "python", "-c", code, options=("--user", "0")))
    assert found == {"programs": [], "modules": [], "missing": [], "left": []}


def test_what_is_installed_is_the_lock_s(image: str) -> None:
    code = "import importlib.metadata as m; print(*(f'{d.name}=={d.version}' for d in m.distributions()), sep='\\n')"
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    locked = {normal(line) for line in lines if line and not line.startswith("#")}
    installed = {normal(line.partition("+")[0]) for line in in_image(image, "python", "-c", code).splitlines()}
    assert installed - locked == set()
    assert len(installed) > 100


def normal(line: str) -> str:
    name, _, version = line.partition("==")
    return f"{name.lower().replace('_', '-').replace('.', '-')}=={version}"


@pytest.fixture(scope="module")
def changed_image(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Another commit's image: other code, another version of the project, and files as umask 027 leaves them."""
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
    # The dependencies' files keep their modes, by which the build's cache knows them.
    for path in (tmp_path / "components", *(tmp_path / "components").rglob("*"), *tmp_path.glob("*.yaml")):
        path.chmod(0o750 if path.is_dir() else 0o640)
    run(str(tmp_path / "docker" / "build"), "cpu", "--base", BASE, "--tag", "concord:test-changed")
    try:
        yield "concord:test-changed"
    finally:
        run("docker", "rmi", "concord:test-changed")


def test_any_user_reads_an_image_that_was_built_under_any_umask(changed_image: str) -> None:
    options = tuple(STRANGER)
    assert in_image(changed_image, "find", "/app", "!", "-readable", options=options) == ""
    assert "register" in in_image(changed_image, "python", "-m", "components", "--help", options=options)


def test_a_change_of_code_leaves_the_dependencies_layer(image: str, changed_image: str) -> None:
    """Also one of the project's version: a registry then takes and gives a megabyte, not two gigabytes."""
    layers = [inspected(tag)["RootFS"]["Layers"] for tag in (image, changed_image)]
    assert inspected(changed_image)["Config"]["Labels"]["org.opencontainers.image.version"] == "0.2.0"
    sizes = layer_sizes(changed_image)
    changed = sum(one != other for one, other in zip(*layers, strict=True))
    assert changed
    assert sum(sizes[:changed]) < 5_000_000 < 1_000_000_000 < sum(sizes)


def layer_sizes(tag: str) -> list[int]:
    """Bytes of the layers, top first; in the history stand also lines that made none."""
    lines = run("docker", "history", "--human=false", "--format", "{{.Size}} {{.CreatedBy}}", tag).splitlines()
    none = ("ARG", "CMD", "ENV", "ENTRYPOINT", "LABEL", "USER")
    return [int(line.split()[0]) for line in lines if not line.partition(" ")[2].startswith(none)]


def test_a_step_in_the_image_makes_what_it_makes_here(
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
    in_image(
        image, "python", "-m", "components", "ingest", "--params", "/work/params.yaml", "--data", "/work/data",
        "--out", "/work/out/there",
        options=(*STRANGER, "-e", "MLFLOW_TRACKING_URI=sqlite:////tmp/mlflow.db", "-w", "/tmp",
                 "-v", f"{tmp_path}:/work:ro", "-v", f"{tmp_path / 'out'}:/work/out"),
    )  # fmt: skip
    assert dvc_hash(tmp_path / "out" / "there") == dvc_hash(tmp_path / "here")


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """S3 whose key reaches one bucket alone, which is not that of the pipeline's outputs."""
    server = S3Server(tmp_path_factory.mktemp("weed"))
    yield server
    server.end()


def ingest_on_kubeflow(
    image: str, cluster: Cluster, params: Path, data: str, data_hash: str, out: Path, url: str
) -> tuple[int, str]:
    """Exit code and output of ingest's container, with the compiled pipeline's words, environment and user."""
    compile_pipeline(load_settings(params), cluster, image, data_hash, out / "pipeline.yaml")
    spec = next(yaml.safe_load_all((out / "pipeline.yaml").read_text(encoding="utf-8")))
    container = spec["deploymentSpec"]["executors"]["exec-ingest"]["container"]
    inputs = spec["root"]["inputDefinitions"]["parameters"]
    values = {name: value.get("defaultValue", data) for name, value in inputs.items()}
    given = {"parameterValues": {"code": "none", **values}}
    artifacts = {name: {"artifacts": [{"name": name, "uri": f"/out/{name}"}]} for name in ("out", "metrics")}
    executor_input = {"inputs": given, "outputs": {"artifacts": artifacts, "outputFile": "/out/output.json"}}
    words = placeholder_utils.replace_placeholders(
        container["command"] + container["args"], executor_input, "training", "ingest", "/root", "run"
    )
    variables = {variable["name"]: variable["value"] for variable in container["env"]} | environment(url, READER)
    variables["MLFLOW_TRACKING_URI"] = "sqlite:////tmp/mlflow.db"
    del variables["CONCORD_DVC_REMOTE"]  # of the default settings; there is none here
    named = [word for name, value in variables.items() for word in ("-e", f"{name}={value}")]
    # MLflow without a server keeps artifacts in the working directory; nothing else there is writable.
    mounts = ["--tmpfs", "/app/mlruns:mode=777", "-v", f"{out}:/out"]
    command = ["docker", "run", *HARDENED, "--network", "host", "--user", "10001:0", *named, *mounts]
    done = subprocess.run([*command, image, *words], capture_output=True, text=True, check=False)
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def test_ingest_on_kubeflow_fetches_its_data_from_a_bucket_of_its_own(
    image: str, bucket: S3Server, tmp_path: Path
) -> None:
    raw = RawFolder(tmp_path / "data")
    for name, body in content(raw.folder).items():
        bucket.put(f"plant/1/{name}", body)
    params, out, digest = tmp_path / "params.yaml", tmp_path / "out", dvc_hash(raw.folder)
    write_params(params)
    cluster = load_cluster()
    out.mkdir()
    out.chmod(0o777)
    code, said = ingest_on_kubeflow(image, cluster, params, "minio://open/plant/1", digest, out, bucket.url)
    assert code == 0, said
    assert "s3://open/plant/1: 70 objects" in said
    assert json.loads((out / "output.json").read_text())["artifacts"]["out"]["artifacts"][0]["metadata"][
        "dvc_hash"
    ] == dvc_hash(out / "out")
    assert content(out / "out").keys() >= {"metrics.json", "histogram.csv"}

    code, said = ingest_on_kubeflow(image, cluster, params, "s3://open/plant/2", digest, out, bucket.url)
    assert code == 1
    assert "s3://open/plant/2: nothing there: no object of bucket open" in said
    assert "make data" not in said
    code, said = ingest_on_kubeflow(image, cluster, params, "s3://closed/plant", digest, out, bucket.url)
    assert code == 1
    assert "refuses it (403 AccessDenied)" in said

    cluster = cluster.model_copy(update={"scratch": "32K"})
    code, said = ingest_on_kubeflow(image, cluster, params, "s3://open/plant/1", digest, out, bucket.url)
    assert code == 1
    assert "are to be fetched, and the cache /tmp/concord-cache has" in said
    assert "on Kubeflow it follows from `scratch` in the cluster file" in said
