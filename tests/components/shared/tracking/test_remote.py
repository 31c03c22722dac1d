"""A DVC remote on a real S3 server: push and fetch, exchange with DVC itself, and error reports."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from components.errors import ConcordError, RetryableError
from components.shared.tracking import remote as remote_module
from components.shared.tracking.hashes import dvc_content
from components.shared.tracking.remote import Remote, configured_remote
from tests.support.s3_server import OWNER, S3Server, environment
from tests.support.services import free_ports

ADDRESS = "s3://open/dvc/remote"
EMPTY = Path("/nonexistent")


@pytest.fixture
def remote(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Remote:
    """The remote that the environment configures, with the owner's credentials."""
    for name, value in environment(s3_server.url, OWNER).items():
        monkeypatch.setenv(name, value)
    return set_remote(monkeypatch, f"{ADDRESS}/{tmp_path.name}")


def set_remote(monkeypatch: pytest.MonkeyPatch, address: str) -> Remote:
    monkeypatch.setenv("CONCORD_DVC_REMOTE", address)
    remote = configured_remote(EMPTY)
    assert remote is not None
    return remote


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """An output with two equal files, an empty file, nested folders and a name that is not ASCII."""
    folder = tmp_path / "output"
    (folder / "pages" / "deep").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(os.urandom(200_000))
    (folder / "pages" / "ü 漢.html").write_text("<p>")
    (folder / "pages" / "deep" / "same.html").write_text("<p>")
    (folder / "metrics.json").write_text("")
    return folder


def keys(server: S3Server, remote: Remote) -> list[str]:
    prefix = remote.address.removeprefix("s3://open/")
    objects = server.owner.list_objects_v2(Bucket="open", Prefix=prefix).get("Contents", [])
    return [entry["Key"].removeprefix(f"{prefix}/") for entry in objects]


def test_output_is_pushed_once_and_fetched_unchanged(
    remote: Remote, output: Path, s3_server: S3Server, tmp_path: Path
) -> None:
    content = dvc_content(output)
    assert remote.fetch(content.md5, tmp_path / "back") is False
    assert not (tmp_path / "back").exists()
    assert remote.push(output, content) == 4, "three contents and the list of four files"
    md5 = content.md5
    assert f"files/md5/{md5[:2]}/{md5[2:]}" in keys(s3_server, remote)
    assert remote.push(output, content) == 0
    assert remote.fetch(md5, tmp_path / "back") is True
    assert dvc_content(tmp_path / "back") == content
    assert (tmp_path / "back" / "pages" / "ü 漢.html").read_text() == "<p>"


def test_push_sends_only_the_missing_objects(remote: Remote, output: Path, s3_server: S3Server) -> None:
    content = dvc_content(output)
    remote.push(output, content)
    (lists,) = [key for key in keys(s3_server, remote) if key.endswith(".dir")]
    lost = next(key for key in keys(s3_server, remote) if not key.endswith(".dir"))
    prefix = remote.address.removeprefix("s3://open/")
    for key in (lists, lost):
        s3_server.owner.delete_object(Bucket="open", Key=f"{prefix}/{key}")
    assert remote.push(output, content) == 2


def test_dvc_pull_reads_our_push_and_fetch_reads_dvc_push(
    remote: Remote, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = dvc_content(output)
    remote.push(output, content)
    repository = tmp_path / "repository"
    repository.mkdir()
    monkeypatch.chdir(repository)
    dvc("init", "--no-scm")
    dvc("remote", "add", "--default", "storage", remote.address)
    (repository / "output.dvc").write_text(f"outs:\n- md5: {content.md5}\n  hash: md5\n  path: output\n")
    dvc("pull")
    assert dvc_content(repository / "output") == content
    (repository / "output" / "more.txt").write_text("new")
    dvc("add", "output")
    dvc("push")
    # From here on the remote comes from the repository's own config.
    monkeypatch.delenv("CONCORD_DVC_REMOTE")
    own = configured_remote(repository)
    assert own is not None
    assert own.address == remote.address
    assert own.fetch(dvc_content(repository / "output").md5, tmp_path / "again")
    assert (tmp_path / "again" / "more.txt").read_text() == "new"


def dvc(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "dvc", "--quiet", *arguments], check=True, stdin=subprocess.DEVNULL)


def test_damaged_object_is_reported_and_not_fetched(
    remote: Remote, output: Path, s3_server: S3Server, tmp_path: Path
) -> None:
    content = dvc_content(output)
    remote.push(output, content)
    md5 = dvc_content(output / "model.safetensors").md5
    prefix = remote.address.removeprefix("s3://open/")
    s3_server.put(f"{prefix}/files/md5/{md5[:2]}/{md5[2:]}", b"something else")
    with pytest.raises(ConcordError, match=rf"{md5[:2]}/{md5[2:]} does not match its hash: its bytes have another"):
        remote.fetch(content.md5, tmp_path / "back")
    assert not (tmp_path / "back").exists()
    listing = b'[{"md5": "0cc175b9c0f1b6a831c399e269772661", "relpath": "../../outside"}]'
    s3_server.put(f"{prefix}/files/md5/{content.md5[:2]}/{content.md5[2:]}", listing)
    with pytest.raises(ConcordError, match="names a file outside the folder"):
        remote.fetch(content.md5, tmp_path / "back")


def test_output_that_changed_after_the_step_is_not_pushed(remote: Remote, output: Path, s3_server: S3Server) -> None:
    content = dvc_content(output)
    (output / "metrics.json").write_text("{}")
    with pytest.raises(ConcordError, match="output: changed since the step wrote it"):
        remote.push(output, content)
    assert keys(s3_server, remote) == []


def test_unreachable_server_is_retried_for_one_minute(
    remote: Remote,
    s3_server: S3Server,
    output: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("s3fs.core.S3FileSystem.retries", 1)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    (port,) = free_ports(1)
    unreachable = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", unreachable)
    delays = []

    def recover_during_the_second_delay(seconds: float) -> None:
        delays.append(seconds)
        if len(delays) == 2:
            monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.url)

    monkeypatch.setattr(remote_module, "sleep", recover_during_the_second_delay)
    assert remote.push(output, dvc_content(output)) == 4
    assert delays == [1.0, 2.0]
    assert re.search(r"could not push \S+/output: .*; retrying in 1 s", capsys.readouterr().err)
    monkeypatch.setenv("AWS_ENDPOINT_URL", unreachable)
    with pytest.raises(RetryableError, match=r"DVC remote s3://open/.*: could not fetch .*AWS_ENDPOINT_URL"):
        remote.fetch(dvc_content(output).md5, output.parent / "again")
    assert sum(delays[2:]) >= 60


def test_permanent_errors_are_reported_without_the_secret(
    s3_server: S3Server, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_module, "RETRY_DELAYS", ())
    for name, value in environment(s3_server.url, (OWNER[0], "wrong-secret-5d2")).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConcordError, match="could not read it") as caught:
        set_remote(monkeypatch, ADDRESS).check()
    assert "wrong-secret-5d2" not in str(caught.value)
    assert caught.value.exit_code == 1
    for name, value in environment(s3_server.url, OWNER).items():
        monkeypatch.setenv(name, value)
    set_remote(monkeypatch, ADDRESS).check()
    no_bucket = set_remote(monkeypatch, "s3://no-such-bucket/x")
    with pytest.raises(ConcordError, match="no-such-bucket"):
        no_bucket.check()
    with pytest.raises(ConcordError, match=r"could not push .*Check CONCORD_DVC_REMOTE"):
        no_bucket.push(output, dvc_content(output))


@pytest.mark.parametrize("value", ["nobody", "gopher://x/y"])
def test_invalid_remote_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONCORD_DVC_REMOTE", value)
    with pytest.raises(ConcordError, match=f"CONCORD_DVC_REMOTE={value}: not a DVC remote"):
        configured_remote(EMPTY)


def test_no_remote_without_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONCORD_DVC_REMOTE", raising=False)
    assert configured_remote(EMPTY) is None
