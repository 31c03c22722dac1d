"""Commands on a terminal that is not UTF-8, and `~` in their words."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from components.__main__ import COMMANDS
from components.console import with_home
from components.errors import ConcordError
from components.settings import load_settings
from components.steps import STEPS
from tests.support.gauge_world import write_params

ROOT = Path(__file__).parents[2]
PIPELINES = ("compile",)
OTHER_ENCODINGS = [{"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"}]


@pytest.mark.parametrize("variables", OTHER_ENCODINGS, ids=lambda each: each["PYTHONIOENCODING"])
def test_what_the_encoding_lacks_is_printed_as_a_question_mark(variables: dict[str, str], tmp_path: Path) -> None:
    """The whole command line runs; text and a table that no such encoding has go to both streams."""
    table = "from rich.table import Table; t = Table('中'); t.add_row('≤ Ω…'); "
    lines = (
        "import runpy, sys; import components.commands.summary as command; from rich.console import Console; " + table +
        "command.main = lambda words: (print('中 ─ ☃'), Console().print(t), Console(stderr=True).print('☃')) and 0; "
        "sys.argv = ['components', 'summary']; runpy.run_module('components', run_name='__main__')"
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", lines], cwd=ROOT, env=os.environ | variables, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode("latin-1")
    assert done.stdout.startswith(b"? ? ?")
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("module", ["components", "pipelines"])
def test_every_command_prints_its_help_in_ascii(module: str, tmp_path: Path) -> None:
    names = [*STEPS, *COMMANDS] if module == "components" else PIPELINES
    started = {
        name: subprocess.Popen(
            [sys.executable, "-m", module, name, "--help"], cwd=ROOT, env=os.environ | OTHER_ENCODINGS[0],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for name in names
    }  # fmt: skip
    for name, process in started.items():
        out, error = process.communicate(timeout=120)
        assert (process.returncode, b"usage" in out) == (0, True), (name, error)


def test_makes_children_get_an_encoding_with_replacement() -> None:
    probe = 'include Makefile\nprobe:\n\t@echo "$$PYTHONIOENCODING"\n'
    encodings = {"": ":replace", "ascii": "ascii:replace", "latin-1:strict": "latin-1:replace", ":strict": ":replace"}
    for given, wanted in encodings.items():
        done = subprocess.run(
            ["make", "-s", "-f", "-", "probe"], input=probe, cwd=ROOT, env=os.environ | {"PYTHONIOENCODING": given},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.strip() == wanted


def test_the_home_folder_is_found_where_the_shell_does_not_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/a\\1")
    words = ["--out=~/x", "~/y", "~", "--text", "a~/b", "~other/x", '{"a": "~/x"}']
    assert with_home(words) == ["--out=/home/a\\1/x", "/home/a\\1/y", "/home/a\\1", *words[3:]]


@pytest.mark.parametrize(("section", "key"), [("ingest", "path"), ("model", "name"), ("launcher", "config")])
def test_a_tilde_in_the_settings_is_refused_with_the_whole_path(section: str, key: str, tmp_path: Path) -> None:
    """DVC, which reads ingest.path too, would look for a folder named `~`."""
    with pytest.raises(ConcordError, match=rf"{section}\.{key}.*Write the whole path: {Path.home()}/x"):
        write_params(tmp_path / "params.yaml", **{section: {key: "~/x"}})
    assert load_settings(ROOT / "params.yaml")
