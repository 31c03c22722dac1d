"""Progress: lines where there is no terminal, a bar where there is one."""

import gc
import re
import threading
import time

import pytest
from rich.console import Console

from components.shared.io import progress
from components.shared.io.progress import Work, lines_elsewhere, transfer_progress, with_progress


@pytest.fixture(autouse=True)
def one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)


def test_line_says_what_is_done_of_how_much_and_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    with Work("ingest"):
        assert list(with_progress(range(2000), "writing rows")) == list(range(2000))
    lines = [line for line in capsys.readouterr().err.splitlines() if "writing rows" in line]
    assert re.fullmatch(r"ingest: writing rows: 1 of 2,000, \d+ s left", lines[0])
    assert re.fullmatch(r"ingest: writing rows: 2,000 of 2,000, in \d+ s", lines[-1])


def test_line_of_a_stream_of_unknown_length_says_how_long_it_works(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    list(with_progress((number for number in range(3)), "reading shards"))
    assert capsys.readouterr().err.splitlines()[-1] == "reading shards: 3, for 0 s"


def test_lines_come_from_a_thread_where_nothing_advances(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.2)
    with Work("sft"):
        time.sleep(0.7)
    lines = capsys.readouterr().err.splitlines()
    assert 2 <= len(lines) <= 4
    assert set(lines) <= {"sft: working for 0 s", "sft: working for 1 s"}


def test_short_work_prints_nothing_and_leaves_no_thread(capsys: pytest.CaptureFixture[str]) -> None:
    others = threading.enumerate()  # an earlier test may still hold the work of a training that failed
    with Work("ingest"), transfer_progress("fetching", 5) as advance:
        advance(5)
        assert list(with_progress("abc", "letters")) == ["a", "b", "c"]
    time.sleep(0.3)
    assert capsys.readouterr().err == ""
    assert "progress-lines" not in {thread.name for thread in threading.enumerate() if thread not in others}


def test_fast_work_does_not_flood(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.3)
    end = time.monotonic() + 1.0
    with Work("rows") as work:
        while time.monotonic() < end:
            work.advance()
            time.sleep(0.001)
    assert len(capsys.readouterr().err.splitlines()) <= 4


def test_other_ranks_print_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    monkeypatch.setenv("RANK", "1")
    list(with_progress(range(3), "rows"))
    assert capsys.readouterr().err == ""


def test_launching_process_leaves_the_lines_to_its_ranks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    with Work("sft") as work, lines_elsewhere():
        work.advance()
    assert capsys.readouterr().err == ""


def test_work_inside_that_failed_is_not_reported_later(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training that raises an error does not reach its end, and a step ends all that began inside it."""
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    with Work("sft"):
        training = Work("training", 10).start()
    lost = Work("lost", 10).start()
    del lost
    gc.collect()
    capsys.readouterr()
    with Work("grpo") as work:
        work.advance()
    training.advance()
    assert {line.partition(":")[0] for line in capsys.readouterr().err.splitlines()} == {"grpo"}


def test_terminal_has_a_bar_and_no_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    monkeypatch.setattr(progress, "console", Console(stderr=True, force_terminal=True, width=100))
    with Work("ingest"):
        list(with_progress(range(3), "writing rows"))
    err = capsys.readouterr().err
    assert "writing rows" in err
    assert "\x1b[" in err
    assert "ingest" not in err


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (89, "89 s"), (120, "2 min"), (5399, "90 min"), (12_000, "3 h 20 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert progress._duration(seconds) == text
