"""The picture of the pipeline: drawn from the compiled spec, reproducible, and the committed one is up to date."""

import re
from pathlib import Path

import pytest

from components.steps import STEPS
from pipelines.__main__ import main

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "results" / "pipeline.svg"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("graph") / "pipeline.svg"
    assert main(["graph", "--params", str(ROOT / "params.yaml"), "--out", str(out)]) == 0
    return out


def ids(picture: Path, kind: str) -> set[str]:
    return set(re.findall(rf'id="{kind}:([^"]+)"', picture.read_text(encoding="utf-8")))


def test_every_task_and_artifact_of_the_step_table_is_drawn(drawn: Path) -> None:
    assert ids(drawn, "task") == {"importer", *STEPS}
    assert ids(drawn, "edge") == {
        f"{port}:{step.name}:out" for step in STEPS.values() for port in step.inputs if port != "data"
    }


def test_committed_picture_shows_the_current_pipeline(drawn: Path) -> None:
    """Compares names, not bytes, which depend on the version of matplotlib."""
    for kind in ("task", "edge"):
        assert ids(COMMITTED, kind) == ids(drawn, kind), "run: python -m pipelines graph"


def test_same_graph_gives_same_bytes(drawn: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.svg"
    assert main(["graph", "--params", str(ROOT / "params.yaml"), "--out", str(again)]) == 0
    assert again.read_bytes() == drawn.read_bytes()


def test_png(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "pipeline.png"
    assert main(["graph", "--params", str(ROOT / "params.yaml"), "--out", str(out)]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
