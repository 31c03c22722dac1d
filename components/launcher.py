"""Runs one step on many ranks, with one error message and one exit code.

torchrun starts the ranks, or `accelerate launch` if an accelerate config file is given. Under any launcher that sets
WORLD_SIZE nothing is launched again.

Only rank 0 opens the MLflow run, prints and writes outputs. An error on any rank ends all of them: the launcher sees
that a process has ended and ends the others, which would wait for it for ever.
"""

import logging
import os
import signal
import sys
import tempfile
from pathlib import Path

from components.errors import ConcordError, RetryableError
from components.settings import Launcher
from components.shared.io.process_pool import exit_when_parent_dies
from components.shared.io.progress import lines_elsewhere

STARTED_BY = "CONCORD_LAUNCHER"
# The section `launcher` as JSON. Kubeflow passes it in the environment: as a flag it would be an input of the step, and
# a different number of ranks would train again.
SECTION = "CONCORD_LAUNCHER_SETTINGS"
# What each of several ranks needs from its launcher.
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# Seconds that a rank waits before it reports an error: the launcher ends one that only echoes another rank sooner.
ECHO_SECONDS = 3.0
# Seconds that the ranks get to finish their optimizer step and write a checkpoint after a signal; torchrun's default of
# 30 is too short for large models. A second signal ends them at once.
STOP_SECONDS = 600


def rank() -> int:
    """This process's rank; 0 if it is the only one."""
    return _variable("RANK") or 0


def world_size() -> int:
    """The number of processes of the step."""
    return _variable("WORLD_SIZE") or 1


def check_variables(parallel: bool) -> None:
    """Checks what a launcher sets in the environment: ranks that do not know each other overwrite each other's outputs.

    Args:
        parallel: whether the step runs on ranks.

    Raises:
        ConcordError: a variable is missing or malformed.
    """
    remedy = (
        "Start the step with torchrun or `accelerate launch`, which set them all, or unset them: unset RANK WORLD_SIZE"
    )
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        if name in os.environ and _variable(name) is None:
            raise ConcordError(f"{name}={os.environ[name]}: not a whole number. {remedy} LOCAL_RANK.")
    if "RANK" in os.environ and "WORLD_SIZE" not in os.environ:
        raise ConcordError(f"RANK={os.environ['RANK']} is set, and WORLD_SIZE is not. {remedy}.")
    if "WORLD_SIZE" in os.environ and rank() >= (_variable("WORLD_SIZE") or 0):
        raise ConcordError(f"RANK={rank()} is not below WORLD_SIZE={os.environ['WORLD_SIZE']}. {remedy}.")
    missing = [name for name in RANK_VARIABLES if not os.environ.get(name)]
    if parallel and world_size() > 1 and missing:
        raise ConcordError(f"WORLD_SIZE={world_size()} is set, and {', '.join(missing)} is not. {remedy}.")


def _variable(name: str) -> int | None:
    """A number from the environment; None if it is unset, malformed or negative."""
    value = os.environ.get(name, "")
    return int(value) if value.isascii() and value.isdigit() else None


def to_launch(settings: Launcher) -> bool:
    """Whether the settings ask for ranks and no launcher has started them."""
    return (settings.num_processes > 1 or settings.config is not None) and "WORLD_SIZE" not in os.environ


def launch(settings: Launcher, words: list[str]) -> int:
    """Runs `python -m components WORDS` on every rank and waits for the end.

    Returns:
        0, or the exit code of the first rank that failed. That rank has reported its error itself.

    Raises:
        RetryableError: a rank was killed.
        ConcordError: the accelerate config file is missing.
    """
    if settings.config is not None and not Path(settings.config).is_file():
        raise ConcordError(f"launcher.config: {settings.config}: no such file. `accelerate config` writes one.")
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # Their own logs of a failed rank would bury the one message that matters.
    logging.disable(logging.ERROR)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // settings.num_processes, 1)))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(STOP_SECONDS))
    os.environ[STARTED_BY] = str(os.getpid())
    try:
        with tempfile.TemporaryDirectory() as logs, lines_elsewhere():
            _run(settings, words, logs)
    except SignalException as stop:
        return 128 + int(stop.sigval)
    except ChildFailedError as error:
        number, failure = error.get_first_failure()
        if failure.exitcode > 0:
            return int(failure.exitcode)
        raise RetryableError(
            f"rank {number} of {settings.num_processes} was ended by {signal.Signals(-failure.exitcode).name}, and the "
            "others were stopped. SIGKILL mostly means that memory ran out; then use more accumulation or a smaller "
            "batch. Run the step again: it resumes from the last complete checkpoint."
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

    arguments = ["--config_file", settings.config, "--num_processes", ranks, "--log_dir", logs, *step]
    launch_command(launch_command_parser().parse_args(arguments))


def started_by_launcher() -> bool:
    """Whether `launch` started this rank."""
    return STARTED_BY in os.environ


def exit_with_launcher() -> None:
    """Makes this rank exit when the launcher that started it is gone (kill -9); it would train on otherwise."""
    launcher = os.environ.get(STARTED_BY)
    if launcher is None or str(os.getppid()) != launcher:
        return
    exit_when_parent_dies(int(launcher))


def leave(code: int) -> None:
    """Ends this process. A rank that failed skips Python's shutdown, which may deadlock with a waiting peer."""
    if code and world_size() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
