"""The summary that `make run` prints at its end."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from components.commands.summary import main, remarks, show
from components.errors import ConcordError
from components.settings import Settings
from components.shared.tracking.connection import connect
from components.shared.tracking.libraries import installed, record
from tests.support.evaluation_results import evaluation_results

ROOT = Path(__file__).parents[3]
NAN = float("nan")


@pytest.fixture
def arguments(settings: Settings, tmp_path: Path) -> list[str]:
    results = evaluation_results(
        settings, tmp_path, [50.0] * 120 + [70.0] * 30, [50.0, 52.0, 70.0, 71.0],
        base=[NAN] * 4, sft=[50, 80, 75, 60], grpo=[50, 52, 70, 70],
    )  # fmt: skip
    (tmp_path / "metrics.json").write_text(json.dumps(results.metrics()))
    (tmp_path / "titles.json").write_text(json.dumps(results.titles()))
    (tmp_path / "served.json").write_text(json.dumps({"model": "grpo", "way": "balanced", "reason": "it is better"}))
    champion = {"version": "12", "metrics": results.models[1].answers["text"].metrics}
    registration = {"name": "gauge-reader", "version": "13", "promoted": False, "reason": "few-shot MAE is no better."}
    registration |= {"runs": {"register": "0" * 32}}
    (tmp_path / "registration.json").write_text(json.dumps({**registration, "champion_before": champion}))
    folder = str(tmp_path)
    return ["--params", str(ROOT / "params.yaml"), "--evaluate", folder, "--register", folder, "--report", folder]


def test_summary_fits_120_columns_and_has_table_verdict_and_report(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    main(arguments)
    output = capsys.readouterr().out
    assert max(len(line) for line in output.splitlines() if "/" not in line) <= 120
    for name in (
        "untrained",
        "SFT",
        "CCC-GRPO",
        "champion v12",
        "best constant",
        "training median",
        "text",
        "balance 0",
        "✓ CCC-GRPO",
    ):
        assert any(line.startswith(name) for line in output.splitlines()), name
    assert output.count("✓ CCC-GRPO") == 1, "one table"
    assert "…" not in output
    assert "gauge-reader version 13 is registered as challenger, not promoted: few-shot MAE is no better." in output
    assert "report.html" in output
    assert "100 %" in output, "the untrained model's unparseable share"


def test_summary_without_champion_and_registration(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    (Path(arguments[5]) / "registration.json").unlink()
    main(arguments)
    output = capsys.readouterr().out
    assert "champion v" not in output
    assert "Nothing is registered yet." in output


def test_a_version_of_another_registry_is_reported(
    arguments: list[str], store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client = connect()
    client.create_registered_model("gauge-reader")
    main(arguments)
    assert "gauge-reader version 13: not in the registry at sqlite" in capsys.readouterr().out
    run = client.create_run("0")
    for _ in range(13):
        client.create_model_version("gauge-reader", str(store), run.info.run_id)
    main(arguments)
    assert "not in the registry" in capsys.readouterr().out, "another version with this number"
    file = Path(arguments[5]) / "registration.json"
    registration = json.loads(file.read_text("utf-8")) | {"runs": {"register": run.info.run_id}}
    file.write_text(json.dumps(registration), encoding="utf-8")
    main(arguments)
    assert "not in the registry" not in capsys.readouterr().out


def test_without_a_store_none_is_made(
    arguments: list[str], store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (store / "clone").mkdir()
    monkeypatch.chdir(store / "clone")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    main(arguments)
    assert "version 13: not in the registry at sqlite" in capsys.readouterr().out
    assert list((store / "clone").iterdir()) == []


def test_outputs_of_other_libraries_are_reported(tmp_path: Path) -> None:
    now = installed()
    assert list(remarks(tmp_path, None)) == [], "older outputs do not say"
    for name, versions in {"ingest": now, "sft": now | {"trl": "0.1"}, "grpo": now | {"trl": "0.1"}}.items():
        record(tmp_path / name, versions)
    (remark,) = remarks(tmp_path, None)
    assert remark.startswith(f"sft, grpo: computed with other libraries: trl 0.1, now {now['trl']}.")


def test_missing_evaluation_is_reported_with_the_remedy(arguments: list[str]) -> None:
    (Path(arguments[3]) / "metrics.json").unlink()
    with pytest.raises(ConcordError, match="make run"):
        main(arguments)


def test_table_is_split_in_two_on_a_narrow_screen(arguments: list[str]) -> None:
    figures = json.loads((Path(arguments[3]) / "metrics.json").read_text())
    screen = io.StringIO()
    rows = [("GRPO (PEARSON), text", figures["grpo"]["text"]), ("champion v999", None)]
    show(Console(file=screen, width=80), rows, "%")
    output = screen.getvalue()
    assert max(len(line) for line in output.splitlines()) <= 80
    assert output.count("GRPO (PEARSON)") == 2
    assert "…" not in output
    assert "champion v999" in output
