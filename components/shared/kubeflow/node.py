"""A process of a TrainJob: runs the step as torchrun starts it, and reports to the head by their shared folder."""

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from components.console import console
from components.errors import ConcordError, RetryableError
from components.launcher import ECHO_SECONDS, rank
from components.shared.io.secrets import masked
from components.shared.io.transient import is_transient
from components.shared.kubeflow.names import NODE_FOLDER, RUN_ID
from components.shared.kubeflow.node_folder import NodeFolder, Result

if TYPE_CHECKING:
    from components.shared.tracking.lineage import Lineage
    from components.shared.tracking.reuse import CachedOutputs
    from components.shared.tracking.step_run import StepRun


@dataclass(frozen=True)
class Node:
    """Rank 0 of a TrainJob as a host: the head has looked for cached outputs, and publishes what is computed here."""

    lineage: "Lineage"
    folder: NodeFolder
    stores_outputs: bool = False

    @property
    def pipeline_run(self) -> str | None:
        """Kubeflow's id of the run, which the head hands on."""
        return os.environ.get(RUN_ID) or None

    def restore(self, outputs: Mapping[str, Path]) -> None:
        """Nothing: the head has looked."""

    def publish(self, run: "StepRun", outputs: Mapping[str, Path], cached: "CachedOutputs | None") -> None:
        """Reports the outputs to the head."""
        self.folder.finish(
            Result(self.lineage.key or "", run.run_id, run.commit, run.dirty, self.pipeline_run, run.outputs)
        )


def this_node() -> NodeFolder | None:
    """The folder that this process shares with a head; None if it is no process of a TrainJob."""
    path = os.environ.get(NODE_FOLDER)
    return NodeFolder(Path(path)) if path else None


def run_on_node(folder: NodeFolder, work: Callable[[], int]) -> int:
    """Runs the step's part of this process; returns its exit code.

    Kubernetes replaces a pod that exits with an error, and the training then resumes. An error that another try would
    not change is noted for the head, which ends the TrainJob. If no head renews the lease, rank 0 has all ranks write a
    checkpoint and exit with 0, which ends the TrainJob too.
    """
    if folder.is_abandoned():
        return 0
    watch = _stop_without_head if rank() == 0 else _end_with_rank_0
    threading.Thread(target=watch, args=(folder,), daemon=True, name="lease-watch").start()
    try:
        return work()
    except KeyboardInterrupt:
        if not folder.is_abandoned():
            raise
        if rank() == 0:
            console.print("the step's pod does not come back; a new run resumes from here")
            folder.leave()
        return 0
    except Exception as error:
        if _is_final(error):
            folder.fail(masked(str(error) if isinstance(error, ConcordError) else f"{type(error).__name__}: {error}"))
        raise


def _stop_without_head(folder: NodeFolder) -> None:
    folder.wait_for_lost_head()
    folder.abandon()
    os.kill(os.getpid(), signal.SIGTERM)


def _end_with_rank_0(folder: NodeFolder) -> None:
    """Ends this rank where it still waits for rank 0, as before the first training step."""
    folder.wait_for_rank_0()
    time.sleep(ECHO_SECONDS)
    os._exit(0)


def _is_final(error: Exception) -> bool:
    """Whether another try would not change the error. A rank whose peer is lost gets a RuntimeError of the back end."""
    if isinstance(error, ConcordError):
        return not isinstance(error, RetryableError)
    return not isinstance(error, RuntimeError | OSError) and not is_transient(error)
