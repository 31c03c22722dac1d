"""The command line: exit codes and error messages."""

import fcntl
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from components.__main__ import main
from components.steps import STEPS, Step
from tests.support.raw_folder import RawFolder, content, write_params

ROOT = Path(__file__).parents[2]
EACH = pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)


def stderr_of(capsys: pytest.CaptureFixture[str]) -> str:
    return re.sub(r"\s+", " ", capsys.readouterr().err)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "words", [[], ["sftt"], ["sft", "--ingset", "x"], ["validate", "--data", "x"], ["sft", "--params"]]
)
def test_a_usage_error_exits_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert "usage: python -m components" in stderr_of(capsys)


def test_help_names_every_step(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    out = re.sub(r"\s+", " ", capsys.readouterr().out)
    for step in STEPS.values():
        assert step.title in out


def test_help_imports_no_library_of_a_step() -> None:
    """Importing them takes seconds."""
    code = (
        "import sys; from components.__main__ import parser; parser().format_help(); "
        "heavy = ('torch', 'transformers', 'mlflow', 'kfp', 'great_expectations', 'dvc'); "
        "print([m for m in heavy if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_a_missing_params_file_exits_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ingest"]) == 1
    assert "error params.yaml: no such file. Give the params file with --params FILE." in stderr_of(capsys)


def test_an_unknown_key_exits_with_1_and_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    (tmp_path / "p.yaml").write_text(text.replace("  reward: ", "  rewrd: "), encoding="utf-8")
    assert main(["grpo", "--params", "p.yaml"]) == 1
    message = stderr_of(capsys)
    assert "p.yaml: grpo.rewrd: unknown key, did you mean reward?" in message
    assert "Traceback" not in message
    assert os.listdir(tmp_path) == ["p.yaml"]


def test_an_error_repeats_no_secret_of_a_settings_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text in (
        "experiment: [http://me:hun/ter2@host]\n",
        "experiment:\n  api_key: hun/ter2\n",
        "HF_TOKEN=hun/ter2\n",
    ):
        (tmp_path / "p.yaml").write_text(text, encoding="utf-8")
        assert main(["grpo", "--params", "p.yaml"]) == 1
        assert "error p.yaml: " in (message := stderr_of(capsys))
        assert "ter2" not in message


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("ingest", "data: missing, and ingest reads it. Make it first: make data, or put the raw input in data/"),
        ("sft", "artifacts/ingest: missing, and sft reads it. Make it first: python -m components ingest"),
    ],
)
def test_a_missing_input_exits_with_1_and_is_named(step: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([step, "--params", str(ROOT / "params.yaml")]) == 1
    assert message in stderr_of(capsys)


@EACH
def test_in_a_pod_the_remedy_for_a_missing_input_names_kubeflow(step: Step, capsys: pytest.CaptureFixture[str]) -> None:
    artifacts = {port: {"artifacts": [{"uri": f"s3://artifacts/run/{port}/out"}]} for port in step.inputs}
    executor_input = {"inputs": {"artifacts": artifacts}, "outputs": {"outputFile": "/out/executor_output.json"}}
    words = [step.name, "--params", str(ROOT / "params.yaml"), "--executor-input", json.dumps(executor_input)]
    assert main(words) == 1
    message = stderr_of(capsys)
    first = next(iter(step.inputs))
    assert f"{step.inputs[first]}: " in message
    wanted = "data_uri to the s3://" if first == "data" else f"no object at s3://artifacts/run/{first}/out"
    assert wanted in message
    assert "make" not in re.sub(r"makes all outputs again", "", message)
    assert "python -m" not in message


@pytest.mark.parametrize("address", ["gs://bucket/data", "s3:/bucket"])
def test_an_unsupported_address_of_data_is_reported(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ingest", "--params", str(ROOT / "params.yaml"), "--data", address]) == 1
    assert "error --data: " in (message := stderr_of(capsys))
    assert "write s3://bucket/prefix" in message or "copy the data to s3://bucket/prefix" in message


def test_the_raw_input_is_that_of_the_settings_or_of_the_flag(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    (tmp_path / "params.yaml").write_text(text.replace("  path: data ", "  path: ../elsewhere "), encoding="utf-8")
    assert main(["ingest"]) == 1
    assert "../elsewhere: missing" in stderr_of(capsys)
    assert main(["ingest", "--data", "given"]) == 1
    assert "given: missing" in stderr_of(capsys)


def test_raw_input_with_another_hash_is_refused(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (store / "raw").mkdir()
    (store / "raw" / "scenes.csv").write_text("id\n", encoding="utf-8")
    words = ["ingest", "--params", str(ROOT / "params.yaml"), "--data", "raw", "--data-hash"]
    assert main([*words, "0" * 32 + ".dir"]) == 1
    message = stderr_of(capsys)
    assert "raw: its hash is " in message
    assert "0" * 32 in message
    found = re.search(r"its hash is (\S+),", message)
    assert found
    main([*words, found[1]])  # the same hash: the step continues and reports the error in the table
    assert "its hash is" not in stderr_of(capsys)


def test_a_step_waits_for_another_run_that_writes_the_same_output(tmp_path: Path) -> None:
    """A step may outlive the `make run` that started it; the next run must not write at the same time."""
    code = (
        "import sys; from pathlib import Path; from components.shared.io.locks import output_lock\n"
        "with output_lock(Path(sys.argv[1])): print('in', flush=True)"
    )
    lock = tmp_path / "artifacts" / ".sft.lock"
    lock.parent.mkdir()
    with open(lock, "w", encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write("4711")
        file.flush()
        words = [sys.executable, "-c", code, "artifacts/sft"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with subprocess.Popen(
            words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as second:
            assert second.stderr is not None
            assert second.stdout is not None
            assert "artifacts/sft is being written by process 4711; waiting" in second.stderr.readline()
            time.sleep(0.2)
            assert second.poll() is None
            fcntl.flock(file, fcntl.LOCK_UN)
            assert second.stdout.readline() == "in\n"
            assert second.wait(timeout=60) == 0
            assert lock.read_text(encoding="ascii") == str(second.pid)


def test_without_a_terminal_a_step_prints_what_it_does_and_writes_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    RawFolder(tmp_path / "data")
    write_params(tmp_path / "params.yaml")
    outputs = []
    for seconds in (0.0, 1e9):
        monkeypatch.setattr("components.shared.io.progress.LINE_SECONDS", seconds)
        assert main(["ingest", "--data", "data", "--out", f"{seconds}"]) == 0
        outputs.append(content(tmp_path / f"{seconds}"))
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ingest: ")]
        assert all(re.match(r"ingest: (working for|.+: \d)", line) for line in lines), lines
        assert any("writing rows: " in line for line in lines) == (seconds == 0.0)
    assert outputs[0] == outputs[1]
