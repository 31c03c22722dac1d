"""The Data Docs show what is in the rows, and run none of it."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from components.validate.checks import Check
from components.validate.suite import Outcome, Suite
from tests.support.browser import browser

MARKUP = "<img src=x onerror=\"document.title='run'\"> & <script>document.title='run'</script>"


class Tags(HTMLParser):
    """Collects the handlers and scripts of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.handlers: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handlers += [name for name, _ in attrs if name == "onerror"]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Outcome]]:
    """Data Docs of rows with markup in every text, and the outcomes."""
    texts = {name: [MARKUP, "plain"] for name in ("id", "origin", "fault", "split", "mode")}
    table = pd.DataFrame({**texts, "target": [1.0, 2.0]})
    check = Check("mode", "rows", "ExpectColumnValuesToBeInSet", {"column": "mode", "value_set": ["plain"]}, "", "")
    suite = Suite()
    outcomes = suite.run("rows", table, [check])
    folder = tmp_path_factory.mktemp("docs") / "docs"
    suite.write_docs(folder)
    return folder, outcomes


def pages(folder: Path) -> list[Path]:
    found = [path for path in folder.rglob("*.html") if "onerror" in path.read_text(encoding="utf-8")]
    assert found, "no page shows the row"
    return found


def test_markup_in_rows_stays_text(written: tuple[Path, list[Outcome]]) -> None:
    for path in pages(written[0]):
        content = path.read_text(encoding="utf-8")
        tags = Tags()
        tags.feed(content)
        assert tags.handlers == []
        assert not re.search(r"<script>document\.title", content)


def test_outcomes_have_the_rows_unchanged(written: tuple[Path, list[Outcome]]) -> None:
    (outcome,) = written[1]
    assert outcome.observed == {"rows": 2, "unexpected": 1}
    assert outcome.rows[0]["id"] == outcome.rows[0]["mode"] == MARKUP


def test_a_browser_runs_nothing_of_a_row(written: tuple[Path, list[Outcome]], tmp_path: Path) -> None:
    with browser(tmp_path) as window:
        for path in pages(written[0]):
            window.open(path.resolve().as_uri())
            assert window.script("return document.querySelectorAll('[onerror]').length") == 0
            assert window.script("return document.title") != "run"
            assert MARKUP in window.text("body")
