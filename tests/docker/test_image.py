"""The image of the steps: what is in it, what is not, and that a step in it makes what it makes outside."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.__main__ import main
from components.shared.tracking.hashes import dvc_hash
from tests.components.raw_folder import RawFolder, write_params
from tests.containers import BASE, ROOT, run

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
