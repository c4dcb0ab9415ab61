"""The threads in which the blocking client calls gRPC.

Ctrl-C raises KeyboardInterrupt at any step of the main thread's Python code. Inside gRPC's Python code, it
would leave a lock of gRPC acquired, and the next call would block forever. The caller's thread, which may be
the main thread, therefore makes no gRPC calls.
"""

import queue
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from triton_face_client.transports.base import Callback

T = TypeVar("T")


class IoThread:
    """A daemon thread that starts asynchronous calls, one after the other."""

    def __init__(self) -> None:
        self._start()

    def submit(self, function: Callable[[Callback], Any], callback: Callback) -> None:
        """Run in the thread a function that starts an asynchronous call, such as `async_infer`.

        The function receives the callback to pass to that call. When the call ends, `callback` runs in a
        thread of gRPC.
        """
        token = object()
        self._in_flight.add(token)

        def finish(result: Any, error: Exception | None) -> None:
            self._in_flight.discard(token)
            callback(result, error)

        def run() -> None:
            try:
                function(finish)
            except Exception as error:
                finish(None, error)

        self._put(run)

    def drain(self, seconds: float) -> None:
        """Wait until all asynchronous calls have ended, for at most `seconds`."""
        end = time.monotonic() + seconds
        while self._in_flight and time.monotonic() < end:
            time.sleep(0.005)

    def stop(self) -> None:
        """End the thread once it has run the functions submitted so far."""
        self._is_stopped = True
        self._functions.put(None)

    def _put(self, function: Callable[[], None]) -> None:
        # A child process after a fork does not have the thread.
        if self._is_stopped or not self._thread.is_alive():
            self._start()
        self._functions.put(function)

    def _start(self) -> None:
        self._functions: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._in_flight: set[object] = set()
        self._is_stopped = False
        # A client that was never closed must not keep the process alive, so the thread is a daemon.
        self._thread = threading.Thread(
            target=_run_functions, args=(self._functions,), daemon=True, name="triton-face-io"
        )
        self._thread.start()


def _run_functions(functions: "queue.SimpleQueue[Callable[[], None] | None]") -> None:
    while (function := functions.get()) is not None:
        function()
        # A reference to the last function would keep the client from garbage collection.
        del function


def run_in_thread(function: Callable[[], Any], callback: Callback) -> None:
    """Run a blocking call in a new thread, then `callback` with its result and None, or None and its error.

    The I/O thread does not run blocking calls: if the server hangs, they would delay all other calls.
    """

    def run() -> None:
        try:
            result = function()
        except Exception as error:
            callback(None, error)
        else:
            callback(result, None)

    threading.Thread(target=run, daemon=True, name="triton-face-call").start()


def call_in_thread(function: Callable[[], T]) -> T:
    """Run a blocking call in a new thread, wait for it, and return its result or raise its error."""
    outcome: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()
    run_in_thread(function, lambda result, error: outcome.put((result, error)))
    result: T
    result, error = outcome.get()
    if error is not None:
        raise error
    return result
