"""A process that is there for another ends when that one is gone, killed perhaps: it would wait, or work, for ever."""

import multiprocessing
import os
import threading
import time
from concurrent.futures import ProcessPoolExecutor


def exit_with_parent(parent: int) -> None:
    """Ends this process, from a thread beside its work, as soon as its parent is no longer `parent`."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()


def process_pool(count: int | None = None) -> ProcessPoolExecutor:
    """A pool of processes that end with this one. They are spawned: a fork would take over locks that threads hold.

    Args:
        count: how many; None: one a core.
    """
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(count, spawn, initializer=exit_with_parent, initargs=(os.getpid(),))
