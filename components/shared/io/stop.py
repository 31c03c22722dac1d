"""Stops a run on Ctrl-C, `kill` or a closed terminal where nothing is lost; a second signal ends it at once.

By default a signal raises `Stopped` where the program is. Work that should reach a safe point first runs in `finishing`
and asks `stop_signal` there. The parent of a step hands signals on in `forwarding`.
"""

import os
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Signals that follow each other faster are one request: a closed terminal sends SIGHUP twice.
REPEAT_SECONDS = 1.0


class Stopped(KeyboardInterrupt):
    """A signal asked this process to stop; handlers of KeyboardInterrupt need not know which one."""

    def __init__(self, number: int) -> None:
        """Takes the signal's number."""
        super().__init__(signal.Signals(number).name)
        self.number = number


@dataclass
class _Request:
    """What was asked for.

    Attributes:
        number: the first signal; 0 if none has arrived.
        time: when it arrived, in seconds of the monotonic clock.
        finishing: what the process finishes before it stops; empty where it stops at once.
        forward: takes each signal's number instead of this process; None where it stops itself.
    """

    number: int = 0
    time: float = 0.0
    finishing: str = ""
    forward: Callable[[int], None] | None = None


_request = _Request()


def handle_stop_signals() -> None:
    """Installs the handlers, for the main thread. A signal that is ignored (nohup) stays ignored."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _handle)


def stop_when_parent_dies() -> None:
    """Starts a thread that asks this process to stop, as SIGTERM does, when its parent is gone."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        if not _request.number:
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()


@contextmanager
def finishing(what: str) -> Iterator[None]:
    """Lets the block go on when a signal arrives, until it asks `stop_signal`.

    Args:
        what: what it finishes, for the message.

    Raises:
        Stopped: a signal arrived, and the block has ended or failed (the signal may have ended a worker process).
    """
    _request.finishing = what
    try:
        yield
    except Exception as error:
        if _request.number:
            raise Stopped(_request.number) from error
        raise
    finally:
        _request.finishing = ""
    if _request.number:
        raise Stopped(_request.number)


@contextmanager
def forwarding(forward: Callable[[int], None]) -> Iterator[None]:
    """Hands every signal to `forward`, which must return at once; nothing else happens in the block, nor at its end."""
    _request.forward = forward
    try:
        yield
    finally:
        _request.forward = None


def stop_signal() -> int:
    """The number of the signal that asked this process to stop; 0 if none has."""
    return _request.number


def exit_code(stop: KeyboardInterrupt) -> int:
    """The exit code that a shell gives a process ended by that signal: 130 for Ctrl-C, 143 for `kill`."""
    return 128 + (stop.number if isinstance(stop, Stopped) else signal.SIGINT)


def _handle(number: int, frame: FrameType | None) -> None:
    if _request.forward:
        _request.number = _request.number or number
        _request.forward(number)
        return
    if _request.number:
        if time.monotonic() - _request.time > REPEAT_SECONDS:
            os._exit(128 + number)
        return
    _request.number, _request.time = number, time.monotonic()
    _leave_closed_terminal()
    if not _request.finishing:
        raise Stopped(number)
    if os.environ.get("RANK", "0") == "0":
        with suppress(OSError):
            os.write(2, f"\nstopping after {_request.finishing}; a second signal stops at once\n".encode())


def _leave_closed_terminal() -> None:
    """Sends the output of a terminal that was closed to nowhere; writing to it would be an error."""
    for descriptor in (1, 2):
        with suppress(OSError):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode) and not os.isatty(descriptor):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, descriptor)
                os.close(null)
