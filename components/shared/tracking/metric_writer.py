"""Writes the points of training curves to MLflow from a thread, so that a silent server does not slow training."""

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from components.console import console
from components.errors import ConcordError
from components.shared.tracking.connection import mlflow_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

FLUSH_SECONDS = 5.0  # a batch costs about 20 ms, whether it holds one metric or a hundred
RETRY_SECONDS = 30.0
METRIC_BATCH = 1000  # MLflow's limit
MAX_POINTS = 100_000  # kept while the store cannot be reached; about 50 MB


class MetricWriter:
    """A buffer of points, emptied by a thread in the order in which they were added.

    While the store cannot be reached, the newest MAX_POINTS points are kept.

    Attributes:
        dropped: points that were dropped, oldest first.
    """

    def __init__(self, client: "MlflowClient", run_id: str) -> None:
        """The thread starts with the first point."""
        self.dropped = 0
        self._client, self._run_id = client, run_id
        self._points: list[Metric] = []
        self._changing = threading.Lock()  # of `_points`
        self._sending = threading.Lock()  # one batch at a time, in order
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, points: "Sequence[Metric]") -> None:
        """Adds points, without waiting for the store."""
        with self._changing:
            self._points += points
            self._drop()
        if self._thread is None:
            self._thread = threading.Thread(target=self._write, daemon=True, name="metric-writer")
            self._thread.start()

    def flush(self) -> None:
        """Writes all points that are buffered.

        Raises:
            MlflowException: the store cannot be reached. The points stay buffered.
        """
        with self._sending:
            while batch := self._next():
                try:
                    self._client.log_batch(self._run_id, metrics=batch)
                except BaseException:
                    with self._changing:
                        self._points[:0] = batch
                        self._drop()
                    raise

    def close(self) -> None:
        """Lets the thread end; points that are still buffered are not written."""
        self._closed.set()

    def _next(self) -> "list[Metric]":
        with self._changing:
            batch = self._points[:METRIC_BATCH]
            del self._points[:METRIC_BATCH]
        return batch

    def _drop(self) -> None:
        excess = max(len(self._points) - MAX_POINTS, 0)
        self.dropped += excess
        del self._points[:excess]

    def _write(self) -> None:
        wait = FLUSH_SECONDS
        while not self._closed.wait(wait):
            try:
                with mlflow_errors("write metrics"):
                    self.flush()
                wait = FLUSH_SECONDS
            except ConcordError as error:
                wait = RETRY_SECONDS
                if not self._closed.is_set():
                    console.print(f"[yellow]warning[/] {error} The step continues; retrying in {wait:.0f} s.")


def done_within(seconds: float, call: Callable[[], None]) -> bool:
    """Runs `call` in a thread and waits for it; returns whether it ended in time. Its errors are dropped."""

    def run() -> None:
        try:
            call()
        except Exception:  # whoever waits reports the error that came before
            return

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()
