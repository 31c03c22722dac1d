"""Tests `ensure` with a real DVC repository and a real remote."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from components.commands.data.command import main as data_command
from components.commands.data.ensure import ensure
from components.errors import ConcordError
from components.shared.tracking.hashes import dvc_hash
from tests.support.raw_folder import content

ROOT = Path(__file__).parents[4]


def dvc(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "dvc", *arguments], check=True, capture_output=True, stdin=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DVC repository without git: params.yaml, data/ of the default experiment, data.dvc."""
    folder = tmp_path_factory.mktemp("template")
    shutil.copy(ROOT / "params.yaml", folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        dvc("init", "--no-scm")
        dvc("config", "core.analytics", "false")
        data_command(["make"])
        dvc("add", "data")
    return folder


@pytest.fixture
def versioned(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the template, as the working directory."""
    folder = tmp_path / "repository"
    shutil.copytree(template, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def without_data(versioned: Path) -> Path:
    """The repository without data/ and data.dvc."""
    shutil.rmtree("data")
    Path("data.dvc").unlink()
    return versioned


def test_correct_data_is_unchanged(versioned: Path) -> None:
    before = (versioned / "data.dvc").read_bytes()
    modified = (versioned / "data" / "scenes.csv").stat().st_mtime_ns
    ensure()
    assert (versioned / "data" / "scenes.csv").stat().st_mtime_ns == modified
    assert (versioned / "data.dvc").read_bytes() == before


def test_a_checkout_without_git_says_so_to_dvc_once(versioned: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """An unpacked archive; its .dvc/config does not say it."""
    shared, local = versioned / ".dvc" / "config", versioned / ".dvc" / "config.local"
    shared.write_text(shared.read_text(encoding="utf-8").replace("no_scm = True", ""), encoding="utf-8")
    with pytest.raises(subprocess.CalledProcessError):
        dvc("status")
    ensure()
    assert local.read_text(encoding="utf-8").split() == ["[core]", "no_scm", "=", "true"]
    assert "not a git repository" in " ".join(capfd.readouterr().err.split())
    dvc("status")
    ensure()
    assert "not a git repository" not in " ".join(capfd.readouterr().err.split())


def test_a_git_repository_is_left_as_it_is(versioned: Path) -> None:
    subprocess.run(["git", "init", "-q"], check=True)
    ensure()
    assert not (versioned / ".dvc" / "config.local").exists()


def test_missing_data_is_generated_with_the_same_hash(versioned: Path) -> None:
    shutil.rmtree(versioned / "data")
    ensure()
    out = yaml.safe_load((versioned / "data.dvc").read_text(encoding="utf-8"))["outs"][0]
    assert dvc_hash(versioned / "data") == out["md5"]


def test_changed_data_is_an_error_and_not_a_new_version(versioned: Path) -> None:
    before = (versioned / "data.dvc").read_bytes()
    table = versioned / "data" / "scenes.csv"
    text = table.read_text(encoding="utf-8")
    table.unlink()
    table.write_text(text + "\n", encoding="utf-8")
    with pytest.raises(
        ConcordError, match=r"data: its hash is .*, but data\.dvc says .* move data away and run make data"
    ):
        ensure()
    assert (versioned / "data.dvc").read_bytes() == before
    assert table.read_text(encoding="utf-8") == text + "\n"


def test_an_additional_file_is_an_error(versioned: Path) -> None:
    (versioned / "data" / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ConcordError, match="its hash is"):
        ensure()


def test_generated_data_with_another_hash_is_an_error(versioned: Path) -> None:
    pointer = versioned / "data.dvc"
    pointer.write_text(pointer.read_text(encoding="utf-8").replace("md5: ", "md5: 00", 1), encoding="utf-8")
    shutil.rmtree(versioned / "data")
    with pytest.raises(ConcordError, match="generated just now, so the code that generates it has changed"):
        ensure()


def test_missing_data_is_pulled_from_the_remote(versioned: Path) -> None:
    (versioned / "data" / "extra.txt").write_text("not a file that make writes", encoding="utf-8")
    dvc("add", "data")
    dvc("remote", "add", "--default", "store", str(versioned / "store"))
    dvc("push")
    shutil.rmtree(versioned / ".dvc" / "cache")
    shutil.rmtree(versioned / "data")
    ensure()
    assert (versioned / "data" / "extra.txt").read_text(encoding="utf-8") == "not a file that make writes"


def test_a_killed_pull_leaves_no_data_and_is_repeated(versioned: Path) -> None:
    dvc("remote", "add", "--default", "store", str(versioned / "store"))
    dvc("push")
    shutil.rmtree(versioned / "data")
    partial = versioned / ".data.pulled"
    partial.mkdir()
    (partial / "scenes.csv").write_text("half", encoding="utf-8")
    ensure()
    assert (versioned / "data" / "scenes.csv").stat().st_size > 1000
    assert not partial.exists()


@pytest.mark.parametrize("mark", [True, False])
def test_a_pull_never_touches_files_that_are_there(versioned: Path, mark: bool) -> None:
    """Nor does the mark that earlier versions left after a pull that was killed, or had failed."""
    dvc("remote", "add", "--default", "store", str(versioned / "store"))
    dvc("push")
    if mark:
        (versioned / ".dvc" / "tmp" / "pull-unfinished").touch()
    shutil.rmtree(versioned / "data")
    (versioned / "data").mkdir()
    (versioned / "data" / "scenes.csv").write_text("a new version", encoding="utf-8")
    with pytest.raises(ConcordError, match="its hash is"):
        ensure()
    assert content(versioned / "data") == {"scenes.csv": b"a new version"}


def test_a_run_before_the_data_is_there_does_not_block_later_runs(versioned: Path) -> None:
    params = versioned / "params.yaml"
    gauges = params.read_text(encoding="utf-8")
    params.write_text(gauges.replace("source: gauges", "source: folder"), encoding="utf-8")
    (versioned / "data").rename(versioned / "away")
    with pytest.raises(ConcordError, match=r"data: missing, and no DVC remote has it"):
        ensure()
    (versioned / "away").rename(versioned / "data")
    before = content(versioned / "data")
    ensure()
    assert content(versioned / "data") == before


def test_data_is_generated_if_the_remote_does_not_have_it(versioned: Path, capfd: pytest.CaptureFixture[str]) -> None:
    dvc("remote", "add", "--default", "store", str(versioned / "empty"))
    shutil.rmtree(versioned / ".dvc" / "cache")
    shutil.rmtree(versioned / "data")
    ensure()
    assert "the pull failed" in capfd.readouterr().err
    assert (versioned / "data" / "scenes.csv").exists()


def test_missing_data_of_the_source_folder_is_an_error(versioned: Path) -> None:
    params = versioned / "params.yaml"
    params.write_text(params.read_text(encoding="utf-8").replace("source: gauges", "source: folder"), encoding="utf-8")
    shutil.rmtree(versioned / "data")
    with pytest.raises(ConcordError, match=r"data: missing, and no DVC remote has it.*dvc remote add"):
        ensure()
    assert not (versioned / "data").exists()


def test_a_path_other_than_that_of_data_dvc_is_left_alone(without_data: Path) -> None:
    params = without_data / "params.yaml"
    params.write_text(
        params.read_text(encoding="utf-8").replace("  path: data ", "  path: ../photos "), encoding="utf-8"
    )
    photos = without_data.parent / "photos"
    photos.mkdir()
    (photos / "mine.jpg").write_bytes(b"1")
    ensure()
    assert not (without_data / "data").exists()
    assert content(photos) == {"mine.jpg": b"1"}


def test_a_missing_path_other_than_that_of_data_dvc_is_an_error(without_data: Path) -> None:
    params = without_data / "params.yaml"
    params.write_text(
        params.read_text(encoding="utf-8").replace("  path: data ", "  path: ../photos "), encoding="utf-8"
    )
    with pytest.raises(ConcordError, match=r"photos: missing, and params\.yaml reads it \(ingest\.path\)"):
        ensure()


@pytest.mark.parametrize("text", ["", "outs: []\n", "outs: [{path: data}]\n", "a: [\n", "- 1\n"])
def test_a_broken_pointer_is_an_error(text: str, without_data: Path) -> None:
    (without_data / "data.dvc").write_text(text, encoding="utf-8")
    with pytest.raises(ConcordError, match=r"data\.dvc: not a \.dvc file with one output"):
        ensure()


@pytest.mark.usefixtures("without_data")
def test_a_missing_pointer_is_an_error() -> None:
    with pytest.raises(ConcordError, match=r"data\.dvc: missing"):
        ensure()


def test_make_generates_the_data_of_the_repository_on_any_machine(tmp_path: Path) -> None:
    data_command(["make", "--out", str(tmp_path / "data")])
    out = yaml.safe_load((ROOT / "data.dvc").read_text(encoding="utf-8"))["outs"][0]
    assert dvc_hash(tmp_path / "data") == out["md5"]
