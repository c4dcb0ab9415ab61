"""How the blocking client holds many conversations at once.

All calls into gRPC are made by a thread of the client's own. An interrupt (Ctrl-C) is raised in the main
thread between any two steps of Python code; in the midst of gRPC's it would leave a lock of its held, and the
next call would wait for ever.
"""

import heapq
import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from tritonclient.grpc import InferenceServerClient, InferResult

from triton_face_client.requests.request import LINGER_SECONDS, Action, Conversation, Send, Wait
from triton_face_client.transports.messages import Manage

Reply = InferResult | Exception | None
Job = Callable[[], None]
T = TypeVar("T")


class Worker:
    """A thread that does jobs, one after the other.

    Attributes
    ----------
    sent : set
        A token for each request that has no answer yet.
    """

    def __init__(self) -> None:
        self.sent: set[Any] = set()
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._start()

    def do(self, job: Job) -> None:
        """Have a job done; it must not raise."""
        if not self._thread.is_alive():  # in a child process after a fork
            self._start()
        self._jobs.put(job)

    def ask(self, question: Callable[[], T]) -> T:
        """Have something done, wait for it, and return or raise what it does."""
        answers: queue.SimpleQueue[tuple[T | None, Exception | None]] = queue.SimpleQueue()

        def job() -> None:
            try:
                answers.put((question(), None))
            except Exception as error:
                answers.put((None, error))

        self.do(job)
        value, error = answers.get()
        if error is not None:
            raise error
        return value

    def linger(self) -> None:
        """Wait for the answers to what has been sent, for a while."""
        end = time.monotonic() + LINGER_SECONDS
        while self.sent and time.monotonic() < end:
            time.sleep(0.005)

    def stop(self) -> None:
        """Let the thread end, after what it still has to do."""
        self._jobs.put(None)

    def _start(self) -> None:
        # A daemon: it must not keep a process alive whose client was never closed.
        self._thread = threading.Thread(target=_serve, args=(self._jobs,), daemon=True, name="triton-face")
        self._thread.start()


def _serve(jobs: "queue.SimpleQueue[Job | None]") -> None:
    while (job := jobs.get()) is not None:
        job()


class Turns:
    """Conversations that take turns in the caller's thread, while other threads carry their messages."""

    def __init__(self, worker: Worker, connection: InferenceServerClient, headers: Mapping[str, str]) -> None:
        self._worker = worker
        self._connection = connection
        self._headers = headers
        self._replies: queue.SimpleQueue[tuple[Conversation, Reply]] = queue.SimpleQueue()
        self._open: set[Conversation] = set()
        self._waiting: list[tuple[float, int, Conversation]] = []
        self._ticket = itertools.count()
        self._ended = 0

    def begin(self, conversation: Conversation) -> None:
        """Let a conversation speak for the first time."""
        self._open.add(conversation)
        self._go_on(conversation, None)

    def run_until_one_ends(self) -> None:
        """Hand replies over until a conversation is over; raise what it raises."""
        while not self._ended:
            for conversation in self._awake():
                self._go_on(conversation, None)
            if self._ended:
                break
            try:
                conversation, reply = self._replies.get(timeout=self._until_next_waking())
            except queue.Empty:
                continue
            self._go_on(conversation, reply)
        self._ended -= 1

    def close(self) -> None:
        """End what is under way. What has been sent is not cancelled (`LINGER_SECONDS`)."""
        for conversation in self._open:
            conversation.close()

    def _awake(self) -> Iterator[Conversation]:
        while self._waiting and self._waiting[0][0] <= time.monotonic():
            yield heapq.heappop(self._waiting)[2]

    def _until_next_waking(self) -> float | None:
        return max(0.0, self._waiting[0][0] - time.monotonic()) if self._waiting else None

    def _go_on(self, conversation: Conversation, reply: Reply) -> None:
        try:
            action = _tell(conversation, reply)
        except StopIteration:
            self._open.discard(conversation)
            self._ended += 1
        else:
            self._act(action, conversation)

    def _act(self, action: Action, conversation: Conversation) -> None:
        if isinstance(action, Wait):
            moment = time.monotonic() + action.seconds
            heapq.heappush(self._waiting, (moment, next(self._ticket), conversation))
        elif isinstance(action, Manage):
            self._worker.do(lambda: self._manage(action, conversation))
        else:
            self._worker.do(lambda: self._send(action, conversation))

    def _manage(self, action: Manage, conversation: Conversation) -> None:
        try:
            getattr(self._connection, action.method)(
                **action.arguments, headers=self._headers, client_timeout=action.seconds
            )
        except Exception as error:
            self._replies.put((conversation, error))
        else:
            self._replies.put((conversation, None))

    def _send(self, action: Send, conversation: Conversation) -> None:
        ticket = next(self._ticket)

        def answered(result: InferResult | None, error: Exception | None) -> None:
            self._worker.sent.discard((self, ticket))
            self._replies.put((conversation, error or result))

        self._worker.sent.add((self, ticket))
        try:
            self._connection.async_infer(**action.arguments, headers=self._headers, callback=answered)
        except Exception as error:
            answered(None, error)


def _tell(conversation: Conversation, reply: Reply) -> Action:
    """Hand a reply over; return the next action."""
    if isinstance(reply, Exception):
        return conversation.throw(reply)
    return conversation.send(reply)
