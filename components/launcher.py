"""One step, many processes: it starts itself once for each rank, and ends as one, with one message and one exit code.

torchrun does the work, or `accelerate launch` where an accelerate config file is given. Under either of them, or any
other launcher that sets WORLD_SIZE, nothing is launched again.

Rank 0 alone holds the lock, opens the MLflow run, speaks and writes. A fault on any rank ends them all: the launcher
sees that a process has ended and ends the others, which would wait for it for ever.
"""

import logging
import os
import signal
import sys
import tempfile
from pathlib import Path

from components.errors import ConcordError
from components.settings import Launcher
from components.shared.io.process_pool import exit_with_parent

STARTED_BY = "CONCORD_LAUNCHER"
# The section as JSON. Kubeflow gives it this way, since a word of the command line would be an input of the step, and
# another number of ranks is no reason to train again.
SECTION = "CONCORD_LAUNCHER_SETTINGS"
# Seconds that a rank waits before it reports an error: the launcher ends one that only echoes another rank sooner.
ECHO_SECONDS = 3.0


def rank() -> int:
    """This process's place among those of the step; 0 where it is alone."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """The number of processes of the step."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def to_launch(settings: Launcher) -> bool:
    """Whether the settings ask for ranks and nobody has started them."""
    return (settings.num_processes > 1 or settings.config is not None) and "WORLD_SIZE" not in os.environ


def launch(settings: Launcher, words: list[str]) -> int:
    """Runs `python -m components WORDS` on every rank and waits for the end.

    Returns:
        The exit code of the rank that ended first with another than 0, else 0. It has told its error itself.

    Raises:
        ConcordError: a rank was killed, or the accelerate config file is not there.
    """
    if settings.config is not None and not Path(settings.config).is_file():
        raise ConcordError(f"launcher.config: {settings.config}: no such file. `accelerate config` writes one.")
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # What they would say of a failed rank stands around the one message that counts.
    logging.disable(logging.ERROR)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // settings.num_processes, 1)))
    os.environ[STARTED_BY] = str(os.getpid())
    try:
        with tempfile.TemporaryDirectory() as logs:
            _run(settings, words, logs)
    except SignalException as stop:
        return 128 + int(stop.sigval)
    except ChildFailedError as error:
        number, failure = error.get_first_failure()
        if failure.exitcode > 0:
            return int(failure.exitcode)
        raise ConcordError(
            f"rank {number} of {settings.num_processes} was ended by {signal.Signals(-failure.exitcode).name}, and the "
            "others with it. SIGKILL mostly means that memory ran out (then give a rank less: more accumulation, a "
            "smaller batch). Start the step again: it goes on from the last whole checkpoint."
        ) from None
    finally:
        logging.disable(logging.NOTSET)
    return 0


def _run(settings: Launcher, words: list[str], logs: str) -> None:
    ranks, step = str(settings.num_processes), ["-m", "components", *words]
    if settings.config is None:
        from torch.distributed import run

        run.run(run.parse_args(["--standalone", "--nproc-per-node", ranks, "--log-dir", logs, *step]))
        return
    from accelerate.commands.launch import launch_command, launch_command_parser

    given = ["--config_file", settings.config, "--num_processes", ranks, "--log_dir", logs, *step]
    launch_command(launch_command_parser().parse_args(given))


def started_by_launcher() -> bool:
    """Whether `launch` started this rank."""
    return STARTED_BY in os.environ


def exit_with_launcher() -> None:
    """Ends this rank when the launcher that started it is gone (kill -9); it would keep training otherwise."""
    launcher = os.environ.get(STARTED_BY)
    if launcher is None or str(os.getppid()) != launcher:
        return
    exit_with_parent(int(launcher))


def leave(code: int) -> None:
    """Ends this process. A rank that failed skips Python's own end, which may wait for a peer that waits for it."""
    if code and world_size() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
