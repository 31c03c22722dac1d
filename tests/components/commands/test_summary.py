"""The last words of `make run`."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from components.commands.summary import main, show, verdict
from components.errors import ConcordError
from components.settings import Settings
from tests.support.judgements import TITLES, judgement

ROOT = Path(__file__).parents[3]
NAN = float("nan")


@pytest.fixture
def words(settings: Settings, tmp_path: Path) -> list[str]:
    made = judgement(
        settings, tmp_path, [50.0] * 120 + [70.0] * 30, [50.0, 52.0, 70.0, 71.0],
        base=[NAN] * 4, sft=[50, 80, 75, 60], grpo=[50, 52, 70, 70],
    )  # fmt: skip
    (tmp_path / "metrics.json").write_text(json.dumps({model.name: model.figures for model in made.models}))
    (tmp_path / "titles.json").write_text(json.dumps(TITLES))
    champion = {"version": "12", "metrics": made.models[1].figures}
    registration = {"name": "gauge-reader", "version": "13", "promoted": False, "reason": "few-shot MAE is no better."}
    (tmp_path / "registration.json").write_text(json.dumps({**registration, "champion_before": champion}))
    folder = str(tmp_path)
    return ["--params", str(ROOT / "params.yaml"), "--evaluate", folder, "--register", folder, "--report", folder]


def test_the_table_the_verdict_and_the_report_in_120_columns(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    main(words)
    said = capsys.readouterr().out
    assert max(len(line) for line in said.splitlines() if "/" not in line) <= 120
    for name in ("untrained", "SFT", "CCC-GRPO", "champion v12"):
        assert any(line.startswith(name) for line in said.splitlines())
    assert "…" not in said
    assert "gauge-reader version 13 is registered as challenger, not promoted: few-shot MAE is no better." in said
    assert "report.html" in said
    assert "100 %" in said, "the untrained model's unparseable share"


def test_without_a_champion_and_without_a_registration(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    (Path(words[5]) / "registration.json").unlink()
    main(words)
    said = capsys.readouterr().out
    assert "champion v" not in said
    assert "Nothing is registered yet." in said


def test_without_an_evaluation_the_remedy_is_told(words: list[str]) -> None:
    (Path(words[3]) / "metrics.json").unlink()
    with pytest.raises(ConcordError, match="make run"):
        main(words)


def test_a_narrow_screen_gets_the_table_in_two(words: list[str]) -> None:
    figures = json.loads((Path(words[3]) / "metrics.json").read_text())
    screen = io.StringIO()
    show(Console(file=screen, width=80), [("GRPO (PEARSON)", figures["grpo"]), ("champion v999", None)], "%")
    said = screen.getvalue()
    assert max(len(line) for line in said.splitlines()) <= 80
    assert said.count("GRPO (PEARSON)") == 2
    assert "…" not in said
    assert "champion v999" in said


def test_the_verdict_of_a_promotion() -> None:
    said = verdict({"name": "m", "version": "2", "promoted": True, "reason": "because.", "champion_before": None})
    assert said == "m version 2 is now champion: because."
