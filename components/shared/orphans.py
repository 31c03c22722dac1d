"""A process that is there for another ends when that one is gone, killed perhaps: it would wait, or work, for ever."""

import os
import threading
import time


def end_with(parent: int) -> None:
    """Ends this process, from a thread beside its work, as soon as its parent is no longer `parent`."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()
