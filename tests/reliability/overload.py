"""More faces than a server can do: what is accepted, what is refused and how fast, and the speed after it.

Open loop: requests come at their rate whatever becomes of the others, at random moments, and a request's time
counts from the moment it was due.
"""

import concurrent.futures
import dataclasses
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from tritonclient.grpc import InferenceServerClient, InferRequestedOutput, InferResult
from tritonclient.utils import InferenceServerException

from deploy.local import LocalServer
from triton_face_client.sample_faces import sample_faces
from triton_face_client.transports.base import create_input

FACES = 8
"""Of a request."""

OVER_CAPACITY = 3.0

CLOSED_LOOP = 4
"""Requests under way where the speed is measured."""

SPEED_SECONDS = 1.0
"""One measurement of the speed."""

FULL_SPEED = 0.9
"""Of the speed before; two measurements without overload differ by as much."""

RECOVERY_SECONDS = 20.0
"""After which the speed is not waited for any more."""

ANSWER_SECONDS = 30.0
"""A request without an answer for so long counts as lost."""


@dataclasses.dataclass(frozen=True)
class OverloadReport:
    """What came of it. Times are in seconds, speeds in faces a second.

    Attributes
    ----------
    capacity, rate : float
        The speed before, in a closed loop, and what was asked for in the open one.
    sent, accepted, lost : int
        Requests of the open loop; lost are those without any answer.
    accepted_speed : float
        Faces a second answered during the overload.
    accepted_p50, accepted_p99 : float
        Times of those that were answered.
    refused_p50, refused_p99 : float
        Times of those that were refused.
    statuses : dict of str to int
        What the refused ones got.
    recovery : float
        From the end of the overload to full speed.
    """

    capacity: float
    rate: float
    sent: int
    accepted: int
    lost: int
    accepted_speed: float
    accepted_p50: float
    accepted_p99: float
    refused_p50: float
    refused_p99: float
    statuses: dict[str, int]
    recovery: float


def overload(server: LocalServer, seconds: float) -> OverloadReport:
    """Measure the speed, put three times as much on the server for some seconds, wait for the speed."""
    with InferenceServerClient(server.grpc_url) as connection:
        ask = _Asker(connection)
        _closed_loop(ask, 2 * SPEED_SECONDS)
        capacity = _closed_loop(ask, 3 * SPEED_SECONDS)
        outcomes = _open_loop(ask, OVER_CAPACITY * capacity, seconds)
        recovery = _recovery(ask, capacity)
    accepted = [outcome.seconds for outcome in outcomes if outcome.status == "OK"]
    refused = [outcome for outcome in outcomes if outcome.status not in ("OK", "lost")]
    return OverloadReport(
        capacity=capacity,
        rate=OVER_CAPACITY * capacity,
        sent=len(outcomes),
        accepted=len(accepted),
        lost=sum(outcome.status == "lost" for outcome in outcomes),
        accepted_speed=FACES * len(accepted) / (seconds + max(accepted, default=0.0)),
        accepted_p50=_quantile(accepted, 0.5),
        accepted_p99=_quantile(accepted, 0.99),
        refused_p50=_quantile([outcome.seconds for outcome in refused], 0.5),
        refused_p99=_quantile([outcome.seconds for outcome in refused], 0.99),
        statuses=dict(Counter(outcome.status for outcome in refused)),
        recovery=recovery,
    )


@dataclasses.dataclass
class _Outcome:
    status: str = "lost"
    seconds: float = ANSWER_SECONDS


class _Asker:
    """One request, made once and sent as often as asked."""

    def __init__(self, connection: InferenceServerClient) -> None:
        frames, landmarks = sample_faces(FACES)
        self._connection = connection
        self._inputs = [
            create_input(name, values).set_data_from_numpy(values)
            for name, values in (("FRAMES_UINT8", frames), ("LANDMARKS", landmarks))
        ]
        self._outputs = [InferRequestedOutput(name) for name in ("HOG", "POSE")]

    def once(self) -> None:
        """Send it and wait."""
        self._connection.infer("ensemble", self._inputs, outputs=self._outputs, client_timeout=ANSWER_SECONDS)

    def later(self, done: Callable[[str], None]) -> None:
        """Send it; `done` gets the status when there is an answer."""

        def answered(result: InferResult | None, error: InferenceServerException | None) -> None:
            done("OK" if error is None else str(error.status()).removeprefix("StatusCode."))

        self._connection.async_infer("ensemble", self._inputs, answered, outputs=self._outputs)


def _closed_loop(ask: _Asker, seconds: float) -> float:
    """Return the faces a second with `CLOSED_LOOP` requests under way."""
    start = time.perf_counter()

    def worker(_number: int) -> int:
        count = 0
        while time.perf_counter() - start < seconds:
            ask.once()
            count += 1
        return count

    with concurrent.futures.ThreadPoolExecutor(CLOSED_LOOP) as pool:
        requests = sum(pool.map(worker, range(CLOSED_LOOP)))
    return FACES * requests / (time.perf_counter() - start)


def _open_loop(ask: _Asker, rate: float, seconds: float) -> list[_Outcome]:
    outcomes: list[_Outcome] = []
    missing = threading.Semaphore(0)
    generator = np.random.default_rng(0)
    start = due = time.perf_counter()
    while (due := due + generator.exponential(FACES / rate)) < start + seconds:
        time.sleep(max(0.0, due - time.perf_counter()))
        outcomes.append(_Outcome())

        def done(status: str, outcome: _Outcome = outcomes[-1], due: float = due) -> None:
            outcome.status, outcome.seconds = status, time.perf_counter() - due
            missing.release()

        ask.later(done)
    deadline = time.perf_counter() + ANSWER_SECONDS
    for _ in outcomes:
        if not missing.acquire(timeout=max(0.0, deadline - time.perf_counter())):
            break
    return outcomes


def _recovery(ask: _Asker, capacity: float) -> float:
    start = time.perf_counter()
    while (elapsed := time.perf_counter() - start) < RECOVERY_SECONDS:
        if _closed_loop(ask, SPEED_SECONDS) >= FULL_SPEED * capacity:
            return elapsed
    return elapsed


def _quantile(values: Sequence[float], share: float) -> float:
    return float(np.quantile(values, share)) if values else 0.0
