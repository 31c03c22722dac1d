"""What the head and the nodes of one training share: a folder on the volume for training state.

The head is the step's pod; it makes a TrainJob whose pods are the nodes. They see each other only through this folder:
inputs and outputs, a lease that the head renews, and what rank 0 reports.
"""

import json
import shutil
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.console import console
from components.errors import ConcordError
from components.shared.io.atomic import new_folder, write_json
from components.shared.tracking.hashes import Content, dvc_content

if TYPE_CHECKING:
    from components.shared.tracking.lineage import Lineage

# Files in the folder.
LEASE, ABANDONED, LEFT, FAILURE, RESULT = "lease", "abandoned", "left", "failure.json", "result.json"
RENEW_SECONDS = 5.0
LEASE_SECONDS = 600.0  # a head whose pod is lost must be replaced in this time


@dataclass(frozen=True)
class Result:
    """A finished training, as rank 0 reports it.

    Attributes:
        key: of its lineage.
        run_id: of its MLflow run.
        commit, dirty: of its code.
        pipeline_run: Kubeflow's id of the run that made it.
        outputs: port name -> content.
    """

    key: str
    run_id: str
    commit: str
    dirty: bool
    pipeline_run: str | None
    outputs: Mapping[str, Content]


@dataclass(frozen=True)
class NodeFolder:
    """The folder of one training.

    Attributes:
        path: on the volume.
    """

    path: Path

    def output(self, port: str) -> Path:
        """Where the nodes write an output."""
        return self.path / "out" / port

    def take_inputs(self, inputs: Mapping[str, Path], contents: Mapping[str, Content]) -> dict[str, Path]:
        """Copies inputs to the folder, each under its hash, unless they are there; returns port name -> path.

        Raises:
            ConcordError: a copy has another hash than its original.
        """
        paths = {port: self.path / "in" / contents[port].md5 for port in inputs}
        for port, path in paths.items():
            if path.exists():
                continue
            console.print(f"copying {port} to the nodes' volume: {contents[port].size / 1e6:.1f} MB", soft_wrap=True)
            with new_folder(path) as folder:
                shutil.copytree(inputs[port], folder, dirs_exist_ok=True, copy_function=shutil.copyfile)
                if dvc_content(folder) != contents[port]:
                    raise ConcordError(f"{path}: is not what {inputs[port]} is. Something else writes to the volume.")
        return paths

    @contextmanager
    def renewed_lease(self) -> Iterator[None]:
        """Changes the lease every RENEW_SECONDS, from a thread, so that rank 0 knows that somebody waits for it."""
        done = threading.Event()

        def renew() -> None:
            while True:
                with suppress(OSError):  # the volume may be back the next time
                    (self.path / LEASE).write_text(uuid.uuid4().hex, encoding="ascii")
                if done.wait(RENEW_SECONDS):
                    return

        self.path.mkdir(parents=True, exist_ok=True)
        thread = threading.Thread(target=renew, daemon=True, name="lease")
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def wait_for_lost_head(self, seconds: float | None = None) -> None:
        """Returns when the lease has not changed for so long; None: LEASE_SECONDS.

        Only this process's clock counts, since those of the machines may differ.
        """
        seconds = LEASE_SECONDS if seconds is None else seconds
        content, changed = "", time.monotonic()
        while time.monotonic() - changed < seconds:
            with suppress(OSError):
                if (now := (self.path / LEASE).read_text(encoding="ascii")) != content:
                    content, changed = now, time.monotonic()
            time.sleep(RENEW_SECONDS / 5)

    def abandon(self) -> None:
        """Notes that the nodes end without a result, because no head waits for it."""
        (self.path / ABANDONED).touch()

    def is_abandoned(self) -> bool:
        """Whether the nodes end, or have ended, without a result."""
        return (self.path / ABANDONED).exists()

    def leave(self) -> None:
        """Notes that rank 0 has ended without a result."""
        (self.path / LEFT).touch()

    def wait_for_rank_0(self) -> None:
        """Returns when rank 0 has ended without a result."""
        while not (self.path / LEFT).exists():
            time.sleep(RENEW_SECONDS)

    def fail(self, message: str) -> None:
        """Notes an error that another try would not change."""
        write_json(self.path / FAILURE, {"message": message})

    @property
    def failure(self) -> str | None:
        """The error that ended the training; None if there is none, or another try may help."""
        content = _read(self.path / FAILURE)
        return None if content is None else str(content["message"])

    def finish(self, result: Result) -> None:
        """Notes that the outputs are complete."""
        outputs = {port: content.to_json() for port, content in result.outputs.items()}
        write_json(self.path / RESULT, {**vars(result), "outputs": outputs})

    def result(self, lineage: "Lineage") -> Result | None:
        """The finished training of this lineage; None if there is none, or its outputs are no longer there."""
        content = _read(self.path / RESULT)
        if content is None or content["key"] != lineage.key:
            return None
        outputs = {port: Content(**item) for port, item in content["outputs"].items()}
        if any(not self.output(port).exists() for port in outputs):
            return None
        return Result(**{**content, "outputs": outputs})

    def begin(self) -> None:
        """Removes what an earlier TrainJob reported; its inputs stay."""
        for name in (ABANDONED, LEFT, FAILURE, RESULT):
            (self.path / name).unlink(missing_ok=True)

    def remove(self) -> None:
        """Removes the folder."""
        shutil.rmtree(self.path, ignore_errors=True)


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def node_folder(state: Path, lineage: "Lineage") -> NodeFolder:
    """The folder of a training, on the volume that is mounted at `state`."""
    return NodeFolder(state / "nodes" / f"{lineage.step}-{lineage.state_name}")
