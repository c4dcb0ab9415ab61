"""Overload: throughput, latencies of responses and rejections, and the recovery afterwards.

The load is an open loop: requests start at random moments with a fixed mean rate, independent of responses. A
request's latency counts from the moment at which it is due.
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
from tests.support.raw_requests import tensor_input
from triton_face_client.sample_faces import sample_faces

FACES = 8
"""Faces of one request."""

OVERLOAD_FACTOR = 3.0
"""Requested rate divided by the capacity."""

CONCURRENCY = 4
"""Requests in flight in the closed loop that measures throughput."""

MEASUREMENT_SECONDS = 1.0
"""Duration of one measurement of the throughput."""

RECOVERED_FRACTION = 0.9
"""Fraction of the capacity that counts as recovered, because measurements without overload vary by 10 %."""

RECOVERY_SECONDS = 60.0
"""Longest wait for the recovery."""

RESPONSE_SECONDS = 30.0
"""A request without a response or an error after this time counts as lost."""


@dataclasses.dataclass(frozen=True)
class OverloadReport:
    """Outcome of an overload. Times are in seconds, throughputs in faces per second.

    Attributes
    ----------
    capacity, rate : float
        Throughput of a closed loop before the overload, and requested rate of the open loop.
    sent, accepted, lost : int
        Requests of the open loop: all; with outputs; with neither outputs nor an error.
    throughput : float
        Faces computed per second during the overload.
    accepted_p50, accepted_p99 : float
        Latencies of requests with outputs.
    rejected_p50, rejected_p99 : float
        Latencies of rejections.
    statuses : dict of str to int
        gRPC status -> number of rejections.
    recovery : float
        Time from the end of the overload until the throughput is the capacity again.
    """

    capacity: float
    rate: float
    sent: int
    accepted: int
    lost: int
    throughput: float
    accepted_p50: float
    accepted_p99: float
    rejected_p50: float
    rejected_p99: float
    statuses: dict[str, int]
    recovery: float


def overload(server: LocalServer, seconds: float) -> OverloadReport:
    """Measure the capacity, send `OVERLOAD_FACTOR` times as much for `seconds`, wait for the recovery."""
    with InferenceServerClient(server.grpc_url) as connection:
        sender = _Sender(connection)
        _throughput(sender, 2 * MEASUREMENT_SECONDS)
        capacity = _throughput(sender, 3 * MEASUREMENT_SECONDS)
        outcomes = _open_loop(sender, OVERLOAD_FACTOR * capacity, seconds)
        recovery = _recovery(sender, capacity)
    accepted = [outcome.seconds for outcome in outcomes if outcome.status == "OK"]
    rejected = [outcome for outcome in outcomes if outcome.status not in ("OK", "lost")]
    return OverloadReport(
        capacity=capacity,
        rate=OVERLOAD_FACTOR * capacity,
        sent=len(outcomes),
        accepted=len(accepted),
        lost=sum(outcome.status == "lost" for outcome in outcomes),
        throughput=FACES * len(accepted) / (seconds + max(accepted, default=0.0)),
        accepted_p50=_quantile(accepted, 0.5),
        accepted_p99=_quantile(accepted, 0.99),
        rejected_p50=_quantile([outcome.seconds for outcome in rejected], 0.5),
        rejected_p99=_quantile([outcome.seconds for outcome in rejected], 0.99),
        statuses=dict(Counter(outcome.status for outcome in rejected)),
        recovery=recovery,
    )


@dataclasses.dataclass
class _Outcome:
    status: str = "lost"
    seconds: float = RESPONSE_SECONDS


class _Sender:
    """A request that is prepared once and sent many times."""

    def __init__(self, connection: InferenceServerClient) -> None:
        frames, landmarks = sample_faces(FACES)
        self._connection = connection
        self._inputs = [
            tensor_input(name, values)
            for name, values in (("FRAMES_UINT8", frames), ("LANDMARKS", landmarks))
        ]
        self._outputs = [InferRequestedOutput(name) for name in ("HOG", "POSE")]

    def send(self) -> None:
        """Send the request and wait for its response."""
        self._connection.infer(
            "ensemble", self._inputs, outputs=self._outputs, client_timeout=RESPONSE_SECONDS
        )

    def send_async(self, done: Callable[[str], None]) -> None:
        """Send the request; call `done` with the status of its response."""

        def on_response(result: InferResult | None, error: InferenceServerException | None) -> None:
            done("OK" if error is None else str(error.status()).removeprefix("StatusCode."))

        self._connection.async_infer("ensemble", self._inputs, on_response, outputs=self._outputs)


def _throughput(sender: _Sender, seconds: float) -> float:
    """Return the faces per second with `CONCURRENCY` requests in flight."""
    start = time.perf_counter()

    def worker(_number: int) -> int:
        count = 0
        while time.perf_counter() - start < seconds:
            sender.send()
            count += 1
        return count

    with concurrent.futures.ThreadPoolExecutor(CONCURRENCY) as pool:
        requests = sum(pool.map(worker, range(CONCURRENCY)))
    return FACES * requests / (time.perf_counter() - start)


def _open_loop(sender: _Sender, rate: float, seconds: float) -> list[_Outcome]:
    outcomes: list[_Outcome] = []
    completed = threading.Semaphore(0)
    generator = np.random.default_rng(0)
    start = due = time.perf_counter()
    while (due := due + generator.exponential(FACES / rate)) < start + seconds:
        time.sleep(max(0.0, due - time.perf_counter()))
        outcomes.append(_Outcome())

        def done(status: str, outcome: _Outcome = outcomes[-1], due: float = due) -> None:
            outcome.status, outcome.seconds = status, time.perf_counter() - due
            completed.release()

        sender.send_async(done)
    deadline = time.perf_counter() + RESPONSE_SECONDS
    for _ in outcomes:
        if not completed.acquire(timeout=max(0.0, deadline - time.perf_counter())):
            break
    return outcomes


def _recovery(sender: _Sender, capacity: float) -> float:
    start = time.perf_counter()
    while (elapsed := time.perf_counter() - start) < RECOVERY_SECONDS:
        if _throughput(sender, MEASUREMENT_SECONDS) >= RECOVERED_FRACTION * capacity:
            return elapsed
    return elapsed


def _quantile(values: Sequence[float], fraction: float) -> float:
    return float(np.quantile(values, fraction)) if values else 0.0
