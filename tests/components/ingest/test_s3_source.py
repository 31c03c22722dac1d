"""Ingest from a bucket, through the command line; no secret may appear in any output or file."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from components import runner
from components.__main__ import main
from components.commands.data.ensure import ensure
from components.errors import ConcordError
from components.settings import load_settings
from components.shared.rows.rows import SPLITS, read_table
from components.shared.tracking.hashes import dvc_hash
from tests.support.packed import pack, sample
from tests.support.raw_folder import ROOT, RawFolder, content, encoded, write_params
from tests.support.s3_server import READER, Gateway, S3Server

ADDRESS = "s3://open/plant/photos"
INGEST = ["ingest", "--params", "params.yaml", "--out"]
TOKEN = "PLANTED-session-token"
PASSWORD = "PLANTED-password"
# Secrets that no step uses.
UNUSED_SECRETS = {
    "HF_TOKEN": "hf_PLANTED-hub",
    "HTTPS_PROXY": "http://me:PLANTED-proxy@127.0.0.1:9",
    "DATABASE_URL": "postgresql://me:PLANTED-database@host/db",
    "SERVICE_API_KEY": "PLANTED-key",
}
SECRETS = [READER[1], TOKEN, PASSWORD, "PLANTED-hub", "PLANTED-proxy", "PLANTED-database", "PLANTED-key"]


@pytest.fixture(scope="module")
def bucket(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> RawFolder:
    """A raw folder, whose files are also in the bucket."""
    raw = RawFolder(tmp_path_factory.mktemp("raw") / "data")
    for name, body in content(raw.folder).items():
        s3_server.put(f"plant/photos/{name}", body)
    return raw


@pytest.mark.usefixtures("store", "gateway")
def test_shards_from_a_bucket_equal_those_from_local_files(bucket: RawFolder) -> None:
    write_params(Path("params.yaml"), ingest={"path": ADDRESS})
    assert main([*INGEST, "remote"]) == 0
    assert main([*INGEST, "given", "--data", ADDRESS]) == 0
    assert main([*INGEST, "local", "--data", str(bucket.folder)]) == 0
    assert content(Path("remote")) == content(Path("given")) == content(Path("local"))
    (folder,) = (path for path in Path(".cache/s3").iterdir() if path.is_dir())
    assert dvc_hash(folder) == dvc_hash(bucket.folder), "MLflow must have the same hash for both"


@pytest.mark.parametrize("name", ["zzz-new.txt", "labels.csv"])
@pytest.mark.usefixtures("store", "gateway")
def test_a_bucket_that_changes_while_ingest_runs_is_an_error(
    name: str, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    raw = RawFolder(tmp_path / "raw")
    for key, body in content(raw.folder).items():
        s3_server.put(f"changing/{name}/{key}", body)
    address = f"s3://open/changing/{name}"
    write_params(Path("params.yaml"), ingest={"path": address})
    assert main([*INGEST, "out"]) == 0
    before, compute = content(Path("out")), runner.compute

    def changing(*arguments: Any) -> None:
        compute(*arguments)
        s3_server.put(f"changing/{name}/{name}", b"another content")

    monkeypatch.setattr(runner, "compute", changing)
    assert main([*INGEST, "out"]) == 1
    message = " ".join(capfd.readouterr().err.split())
    assert "changed while the step ran" in message
    assert name in message
    assert content(Path("out")) == before


def write_published(folder: Path) -> None:
    """Writes a table with images in AgeDB's format, and shards in the release's format."""
    rows = [(age, f"AgeDB/{split} {k}_é.jpg", split) for split in SPLITS for k, age in enumerate((20, 20, 31, 90))]
    for k, (_, path, _) in enumerate(rows):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(encoded(k, "JPEG"))
    lines = ["age,path,split", *(",".join(map(str, row)) for row in rows)]
    (folder / "agedb.csv").write_text("\n".join(lines), encoding="utf-8")
    for split in ("train", "test"):
        first = 100 * (split == "test")
        members = [m for k in range(9) for m in sample(f"{k:06d}", encoded(first + k, "JPEG"), k % 3 + 30)]
        pack(folder / "faces" / split / f"faces-{split}-000000.tar", members)


@pytest.mark.usefixtures("gateway")
def test_published_sources_are_read_from_a_bucket(store: Path, s3_server: S3Server) -> None:
    write_published(store / "local")
    for name, body in content(store / "local").items():
        s3_server.put(f"sets/{name}", body)
    release = {"subset": "faces", "train": None, "val": None, "test": None, "hub": None}
    formats: dict[str, dict[str, Any]] = {
        "agedb": {"csv": "agedb.csv", "image_column": "path", "target_column": "age", "id_column": "path"}
        | {"split": "given", "split_column": "split"},
        "release": {"split": "given-test", "release": release},
    }
    for source, format in formats.items():
        write_params(Path("params.yaml"), ingest={"source": source, "path": "s3://open/sets", **format})
        assert main([*INGEST, f"{source}-remote"]) == 0
        assert main([*INGEST, f"{source}-local", "--data", "local"]) == 0
        assert content(Path(f"{source}-remote")) == content(Path(f"{source}-local"))
        for split in SPLITS:
            assert read_table(Path(f"{source}-remote"), split, ["id"]).num_rows > 0


def test_a_hub_with_a_path_in_a_bucket_is_an_error(tmp_path: Path) -> None:
    hub = {"id": "a/b", "revision": "0" * 40}
    release = {"subset": None, "train": None, "val": None, "test": None, "hub": hub}
    ingest = {"source": "release", "split": "given-test", "release": release, "path": "s3://open/x"}
    with pytest.raises(ConcordError, match=r"params\.yaml: ingest: path: .*into a bucket: release\.hub must be null"):
        write_params(tmp_path / "params.yaml", ingest=ingest)


@pytest.mark.usefixtures("store", "bucket")
def test_data_ensure_fetches_the_objects_and_ingest_does_not_fetch_them_again(gateway: Gateway) -> None:
    write_params(Path("params.yaml"), ingest={"path": ADDRESS})
    Path("data.dvc").write_text("outs:\n- {md5: 0.dir, path: data}\n", encoding="utf-8")
    ensure()
    assert len(gateway.objects()) == 70
    assert main([*INGEST, "out"]) == 0
    assert len(gateway.objects()) == 70


@pytest.mark.usefixtures("store", "gateway")
def test_errors_in_a_bucket_s_table_are_reported_as_in_a_local_one(
    s3_server: S3Server, capfd: pytest.CaptureFixture[str]
) -> None:
    s3_server.put("no-table/a.png", b"1")
    write_params(Path("params.yaml"), ingest={"path": "s3://open/no-table"})
    assert main([*INGEST, "out"]) == 1
    assert "labels.csv: no such file" in capfd.readouterr().err
    assert not Path("out").exists()


@pytest.mark.parametrize("path", [f"s3://KEY:{PASSWORD}@open/plant", f"s3://open/x?X-Amz-Signature={PASSWORD}"])
def test_settings_refuse_an_address_with_a_secret(path: str, tmp_path: Path) -> None:
    with pytest.raises(ConcordError, match=r"params\.yaml: ingest\.path: an S3 address must not contain cred") as error:
        write_params(tmp_path / "params.yaml", ingest={"path": path})
    assert PASSWORD not in str(error.value)


@pytest.mark.usefixtures("bucket")
@pytest.mark.parametrize("failure", ["none", "refused", "status", "endpoint"])
def test_no_secret_appears_in_output_or_files(
    failure: str, store: Path, gateway: Gateway, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Searches for planted secrets after a successful run and after failing ones."""
    write_params(Path("params.yaml"), ingest={"path": "s3://closed/x" if failure == "refused" else ADDRESS})
    if failure == "refused":
        monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
    if failure == "status":
        gateway.status = lambda path: 400 if path.endswith(".csv") else None
    if failure == "endpoint":
        monkeypatch.setenv("AWS_ENDPOINT_URL", gateway.url.replace("http://", f"http://me:{PASSWORD}@"))
        gateway.status = lambda path: 403
    everything: dict[str, bytes] = {}
    for arguments in (["data", "ensure"], [*INGEST, "out"]):
        run = subprocess.run(
            [sys.executable, "-m", "components", *arguments],
            env=os.environ | UNUSED_SECRETS | {"PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert run.returncode == (failure != "none"), run.stderr
        assert "Traceback" not in run.stderr
        assert run.stderr
        everything |= {
            f"stdout of {arguments[0]}": run.stdout.encode(),
            f"stderr of {arguments[0]}": run.stderr.encode(),
        }
    everything |= content(store)
    assert {"mlflow.db", "params.yaml"} < set(everything)
    assert any(name.startswith(".cache/s3/") for name in everything)
    assert any(name.startswith("out/") for name in everything) == (failure == "none")
    for name, text in everything.items():
        for secret in SECRETS:
            assert secret.encode() not in text, f"{secret} in {name}"


def test_dvc_detects_a_new_version_without_reading_objects(store: Path, s3_server: S3Server, gateway: Gateway) -> None:
    """With ingest.path as a dependency, as in dvc.yaml."""
    from dvc.repo import Repo

    s3_server.put("versions/a", b"1")
    Path("params.yaml").write_text("ingest: {path: 's3://open/versions'}\n")
    stage = {"cmd": "true", "deps": ["${ingest.path}"]}
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": {"ingest": stage}}))
    Repo.init(no_scm=True).close()
    with Repo() as repo:
        assert [stage.name for stage in repo.reproduce()] == ["ingest"]
        assert repo.reproduce() == []
        s3_server.put("versions/a", b"2")
        assert [stage.name for stage in repo.reproduce()] == ["ingest"]
    assert not [path for path, _ in gateway.objects() if path.endswith("/a")]
    files = content(store)
    assert "dvc.lock" in files
    assert not [name for name, text in files.items() if READER[1].encode() in text]


def test_the_ingest_stage_of_the_repository_depends_on_the_path() -> None:
    stage = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]["ingest"]
    assert "${ingest.path}" in stage["deps"]
    assert load_settings(ROOT / "params.yaml").ingest.path == "data"
