"""Settings shown in README.md are valid, and figures in results/README.md equal those of the results files."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from components.commands.ablation.studies import STUDIES
from components.commands.ablation.table import markdown as ablation_markdown
from components.commands.bench.data_table import data_markdown
from components.commands.bench.measure import CASES
from components.commands.bench.table import markdown as bench_markdown
from components.settings import load_settings

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
BLOCKS = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
Table = list[dict[str, str]]


def tables(text: str) -> list[tuple[str, Table]]:
    """Markdown tables, each with the last results file that was linked above it and its rows by column name."""
    found: list[tuple[str, Table]] = []
    source, header = "", ""
    for line in text.splitlines():
        if links := re.findall(r"\]\(([\w-]+\.md)\)", line):
            source = links[-1]
        if not line.startswith("|"):
            header = ""
        elif not header:
            header = line
            found.append((source, []))
        elif not set(line) <= set("|-"):
            found[-1][1].append(dict(zip(cells(header), cells(line), strict=True)))
    return found


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def sources() -> list[dict[str, Any]]:
    """The examples of settings in the table of sources of ingest's README, as sections of params.yaml."""
    text = (ROOT / "components" / "ingest" / "README.md").read_text(encoding="utf-8")
    (table,) = (rows for _, rows in tables(text) if "example" in rows[0])
    return [
        {"ingest": {"source": row["source"].split("`")[1], **yaml.safe_load(row["example"].strip("`"))}}
        for row in table
    ]


SOURCES = sources()
README_TABLES = [(source, table) for source, table in tables((RESULTS / "README.md").read_text("utf-8")) if source]


def test_the_readmes_show_settings() -> None:
    assert len(BLOCKS) == 1
    assert len(SOURCES) == 7


@pytest.mark.parametrize("shown", [*map(yaml.safe_load, BLOCKS), *SOURCES], ids=str)
def test_settings_in_the_readmes_are_settings(shown: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    content = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for section, keys in shown.items():
        content[section] |= keys
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    settings = load_settings(tmp_path / "params.yaml").tree()
    for section, keys in shown.items():
        assert {key: settings[section][key] for key in keys} == keys


@pytest.mark.parametrize(("source", "table"), README_TABLES, ids=lambda value: value if isinstance(value, str) else "")
def test_tables_in_the_results_readme_are_excerpts_of_the_results_files(source: str, table: Table) -> None:
    """Every row is a row of the results file, with some of its columns."""
    originals = [rows for _, rows in tables((RESULTS / source).read_text(encoding="utf-8"))]
    assert table
    assert any(
        len(rows) >= len(table) and all(any(row.items() <= original.items() for original in rows) for row in table)
        for rows in originals
    )


def test_results_readme_has_a_table_of_every_measured_result() -> None:
    expected = {path.name for path in RESULTS.glob("*.md")} - {"README.md", "images.md"}
    assert {source for source, _ in README_TABLES} == expected


def test_results_readme_lists_every_file() -> None:
    text = (RESULTS / "README.md").read_text(encoding="utf-8")
    for path in RESULTS.iterdir():
        assert path.name == "README.md" or path.stem in text, path.name


def read_json(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def without_last_line(text: str) -> list[str]:
    """The lines without the one about date and versions, whose order JSON does not keep."""
    return text.strip().splitlines()[:-1]


ABLATIONS = {"ablation-": "claim", "advantage-": "advantage", "recent-": "recent"}  # file name -> study


@pytest.mark.parametrize(
    ("name", "study"),
    [(path.stem, study) for start, study in ABLATIONS.items() for path in sorted(RESULTS.glob(f"{start}*.json"))],
)
def test_ablation_tables_are_written_from_their_json(name: str, study: str) -> None:
    experiment = read_json(name)["experiment"]
    recipe = ROOT / "pipelines" / "recipes" / f"{experiment}.yaml"
    settings = load_settings(recipe if recipe.exists() else ROOT / "params.yaml")
    written = (RESULTS / f"{name}.md").read_text(encoding="utf-8")
    expected = ablation_markdown(settings, STUDIES[study](settings), read_json(name))
    assert without_last_line(written) == without_last_line(expected)


def test_benchmark_tables_are_written_from_their_json() -> None:
    bench, data = read_json("bench"), read_json("bench-data")
    written = {name: without_last_line((RESULTS / f"{name}.md").read_text("utf-8")) for name in ("bench", "bench-data")}
    by_case = {case: bench["cases"][case] for case in CASES}
    assert written["bench"] == without_last_line(bench_markdown(by_case, bench["machine"]))
    assert written["bench-data"] == without_last_line(data_markdown(data["sizes"], data["machine"]))


def test_figures_in_the_text_of_the_results_readme() -> None:
    text = " ".join((RESULTS / "README.md").read_text(encoding="utf-8").split())
    heavy, g16 = (np.median(read_json("bench")["cases"][case]["ratios"]) for case in ("image-heavy", "g16"))
    assert f"With 256 image tokens a step is {heavy:.1f} times as fast" in text
    assert f"with 16 answers per input {g16:.1f} times" in text
    gauges = (RESULTS / "gauges.md").read_text(encoding="utf-8")
    for run in (gauges, *((RESULTS / f"{name}.md").read_text("utf-8") for name in ("meter-digits", "han-strokes"))):
        served = re.search(r"difference -(\S+) \(95 % interval -(\S+) to -(\S+)\)", run)
        assert served is not None
        assert "in the few-shot group by {0} [{2}, {1}]".format(*served.groups()) in text
        many = re.search(r"many-shot MAE (\S+) \S+ against (\S+) \S+ \(", run)
        assert many is not None
        assert "at a many-shot MAE of {} against {}".format(*many.groups()) in text


def test_figures_in_the_readme_are_those_of_the_results() -> None:
    """Every row of its table is a row of results/gauges.md, and every number of its text is in a results file."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text[text.index("## Results") : text.index("## The pipeline")]
    ((_, table),) = tables(section)
    originals = [row for _, rows in tables((RESULTS / "gauges.md").read_text(encoding="utf-8")) for row in rows]
    assert table
    assert all(any(row.items() <= original.items() for original in originals) for row in table)
    written = " ".join(path.read_text(encoding="utf-8") for path in RESULTS.glob("*.md"))
    prose = " ".join(line for line in section.splitlines() if not line.startswith("|"))
    numbers = re.findall(r"\d[\d,]*\.?\d*(?=\D)", prose.replace("95 %", ""))
    assert {"2,020", "5.4", "0.643", "0.437", "0.848"} == {number for number in numbers if len(number) > 1}
    assert all(number.replace(",", "") in written for number in numbers if len(number) > 1)
