"""Threads that run beside a test."""

import contextlib
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def background_threads(function: Callable[[threading.Event], None], count: int) -> Iterator[None]:
    """Run a function in `count` threads until the end of the block.

    At the end of the block the event that the function receives is set, and the block waits for the threads.
    """
    stopping = threading.Event()
    threads = [threading.Thread(target=function, args=(stopping,)) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopping.set()
        for thread in threads:
            thread.join()
