"""The share of the steps' time that is spent waiting for pictures."""

import pytest

from components.shared.training.data_wait import DataWait


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    return now


def step(data_wait: DataWait, clock: list[float], wait: float, work: float) -> None:
    data_wait.batches_requested()
    clock[0] += wait
    data_wait.batches_arrived()
    clock[0] += work
    data_wait.step_ended()


def test_the_share_covers_the_steps_since_the_last_call(clock: list[float]) -> None:
    data_wait = DataWait()
    assert data_wait.share() is None
    step(data_wait, clock, 1.0, 3.0)
    step(data_wait, clock, 1.0, 5.0)
    clock[0] += 50  # an evaluation
    assert data_wait.share() == pytest.approx(0.2)
    assert data_wait.share() is None
    step(data_wait, clock, 9.0, 1.0)
    assert data_wait.share() == pytest.approx(0.9)
    assert data_wait.summary() == "55.0% of the steps' 20 s went into waiting for pictures"


def test_an_interrupted_step_does_not_count(clock: list[float]) -> None:
    data_wait = DataWait()
    data_wait.step_ended()
    data_wait.batches_requested()
    assert data_wait.share() is None
    assert data_wait.summary() == ""
