"""`triton-face bench`: a short load test, closed or open loop, with latency percentiles.

Closed loop: a fixed number of requests is in flight; the next one starts when one ends, so a slow server
receives fewer requests. Open loop: requests start at a fixed mean rate, at the random times of independent
callers (a Poisson process), whether or not earlier requests have ended. Its latencies count from the
scheduled start; otherwise they would omit the delays that an overloaded server causes ("coordinated
omission", G. Tene).
"""

import asyncio
import collections
import dataclasses
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any

import numpy as np

from triton_face_client.async_client import AsyncFaceFeatureClient
from triton_face_client.errors import FaceServiceError
from triton_face_client.sample_faces import sample_faces

SendRequest = Callable[[float], Coroutine[Any, Any, None]]
"""Send one request; the argument is its scheduled start."""

PERCENTILES = (50, 90, 95, 99)

MAX_IN_FLIGHT = 1000
"""An open loop with this many requests in flight does not send further ones and counts them as failed."""


@dataclasses.dataclass(frozen=True)
class Load:
    """Settings of a load.

    Attributes
    ----------
    seconds : float
        Duration in which requests start.
    batch : int
        Faces per request.
    concurrency : int
        Requests in flight in a closed loop.
    rate : float or None
        Faces per second in an open loop; None for a closed loop.
    outputs : sequence of str
        The requested outputs (`FaceFeatureClient.features`).
    """

    seconds: float
    batch: int
    concurrency: int
    rate: float | None
    outputs: Sequence[str]


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """The measurements of a load.

    Attributes
    ----------
    loop : str
        "closed" or "open".
    batch : int
        Faces per request.
    concurrency : int or None
        Requests in flight; None for an open loop.
    rate : float or None
        Scheduled faces per second; None for a closed loop.
    outputs : list of str
        The requested outputs.
    seconds : float
        Time from the first request to the last response.
    due : int
        Scheduled requests.
    requests : int
        Successful requests.
    failed : dict of str to int
        Number of failed requests by gRPC status.
    faces_a_second : float
        Faces per second in successful requests.
    latency_ms : dict of str to float
        Percentiles and maximum, milliseconds; empty without a successful request.
    """

    loop: str
    batch: int
    concurrency: int | None
    rate: float | None
    outputs: list[str]
    seconds: float
    due: int
    requests: int
    failed: dict[str, int]
    faces_a_second: float
    latency_ms: dict[str, float]


async def bench(client: AsyncFaceFeatureClient, load: Load) -> LoadReport:
    """Load the server with generated faces, uint8 crops.

    Parameters
    ----------
    client : AsyncFaceFeatureClient
        A client whose `batch_size` is at least `load.batch` and whose `Retry` has 0 seconds, so that one call
        is one request.
    load : Load
        Settings of the load.

    Raises
    ------
    FaceServiceError
        If the request before the load fails.
    ValueError
        If the server has no such output.
    """
    faces = sample_faces(load.batch)
    await client.features(*faces, load.outputs)
    latencies: list[float] = []
    failed: collections.Counter[str] = collections.Counter()

    async def send_request(scheduled_start: float) -> None:
        try:
            await client.features(*faces, load.outputs)
        except FaceServiceError as error:
            failed[str(error.status()).removeprefix("StatusCode.")] += 1
        else:
            latencies.append(time.perf_counter() - scheduled_start)

    start = time.perf_counter()
    if load.rate is None:
        await _closed_loop(send_request, start + load.seconds, load.concurrency)
    else:
        end = start + load.seconds
        await _open_loop(send_request, start, end, load.rate / load.batch, failed)
    elapsed = time.perf_counter() - start
    return LoadReport(
        loop="closed" if load.rate is None else "open",
        batch=load.batch,
        concurrency=load.concurrency if load.rate is None else None,
        rate=load.rate,
        outputs=list(load.outputs),
        seconds=elapsed,
        due=len(latencies) + failed.total(),
        requests=len(latencies),
        failed=dict(failed),
        faces_a_second=len(latencies) * load.batch / elapsed,
        latency_ms=_percentiles(latencies),
    )


def as_text(report: LoadReport) -> str:
    """Format a report as a few lines."""
    load = (
        f"{report.concurrency} requests in flight"
        if report.rate is None
        else f"{report.rate:g} faces/s at random times"
    )
    failed = ", ".join(f"{count} {status}" for status, count in report.failed.items()) or "none"
    latency = "   ".join(f"{name} {value:.2f}" for name, value in report.latency_ms.items())
    return "\n".join(
        [
            f"{report.loop} loop, {load}, {report.batch} faces each, {','.join(report.outputs)}, "
            f"{report.seconds:.1f} s",
            f"successful   {report.requests} of {report.due} requests, {report.faces_a_second:.1f} faces/s",
            f"failed       {failed}",
            f"latency, ms  {latency or '-'}",
        ]
    )


async def _closed_loop(send_request: SendRequest, end: float, concurrency: int) -> None:
    async def worker() -> None:
        while (now := time.perf_counter()) < end:
            await send_request(now)

    await asyncio.gather(*(worker() for _ in range(concurrency)))


async def _open_loop(
    send_request: SendRequest,
    start: float,
    end: float,
    requests_a_second: float,
    failed: collections.Counter[str],
) -> None:
    in_flight: set[asyncio.Task[None]] = set()
    async for scheduled_start in _arrivals(start, end, requests_a_second):
        if time.perf_counter() > end or len(in_flight) >= MAX_IN_FLIGHT:
            failed["NOT_SENT"] += 1
            continue
        task = asyncio.create_task(send_request(scheduled_start))
        in_flight.add(task)
        task.add_done_callback(in_flight.discard)
    await asyncio.gather(*in_flight)


async def _arrivals(start: float, end: float, requests_a_second: float) -> AsyncIterator[float]:
    """Wait for the scheduled start of each request and yield it.

    The starts are uniform random times: a Poisson process with a fixed number of requests, so that a short
    run has the requested rate.
    """
    count = max(1, round(requests_a_second * (end - start)))
    for scheduled_start in np.sort(np.random.default_rng(0).uniform(start, end, count)).tolist():
        # Sleep even when late, because responses are handled on the same event loop.
        await asyncio.sleep(max(0.0, scheduled_start - time.perf_counter()))
        yield scheduled_start


def _percentiles(latencies: list[float]) -> dict[str, float]:
    if not latencies:
        return {}
    values = 1e3 * np.percentile(latencies, [*PERCENTILES, 100])
    return dict(zip([*(f"p{p}" for p in PERCENTILES), "max"], map(float, values), strict=True))
