"""The share of the steps' time that goes into waiting for pictures."""

import pytest

from components.shared.training.data_wait import Waiting


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    return now


def step(waiting: Waiting, clock: list[float], wait: float, work: float) -> None:
    waiting.call()
    clock[0] += wait
    waiting.arrive()
    clock[0] += work
    waiting.end()


def test_each_log_entry_has_the_steps_since_the_last_one(clock: list[float]) -> None:
    waiting = Waiting()
    assert waiting.share() is None
    step(waiting, clock, 1.0, 3.0)
    step(waiting, clock, 1.0, 5.0)
    clock[0] += 50  # an evaluation
    assert waiting.share() == pytest.approx(0.2)
    assert waiting.share() is None
    step(waiting, clock, 9.0, 1.0)
    assert waiting.share() == pytest.approx(0.9)
    assert waiting.summary() == "55.0% of the steps' 20 s went into waiting for pictures"


def test_a_step_that_was_broken_off_does_not_count(clock: list[float]) -> None:
    waiting = Waiting()
    waiting.end()
    waiting.call()
    assert waiting.share() is None
    assert waiting.summary() == ""
