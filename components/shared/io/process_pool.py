"""Worker processes that exit when their parent dies; otherwise they would wait, or keep working, for ever."""

import multiprocessing
import os
import threading
import time
from concurrent.futures import ProcessPoolExecutor

from components.shared.io.memory_budget import DECODING_BYTES, MemoryBudget, share_decoding_budget


def exit_when_parent_dies(parent: int) -> None:
    """Starts a thread that ends this process as soon as its parent is no longer process `parent`."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()


def process_pool(count: int | None = None) -> ProcessPoolExecutor:
    """A pool of processes that exit when this one dies, and have one budget for decoded images.

    The processes are spawned: forked ones would inherit locks that this process's threads hold.

    Args:
        count: number of processes; None: one per core.
    """
    spawn = multiprocessing.get_context("spawn")
    budget = MemoryBudget(DECODING_BYTES, spawn)
    return ProcessPoolExecutor(count, spawn, initializer=_start_worker, initargs=(os.getpid(), budget))


def _start_worker(parent: int, budget: MemoryBudget) -> None:
    exit_when_parent_dies(parent)
    share_decoding_budget(budget)
