"""`triton-face bench`: a quick load, closed or open loop, with percentiles.

Closed loop: so many requests are always under way; the next one starts when one ends, so a slow server is
asked less often. Open loop: requests come at a rate whatever becomes of the others, at random moments as
independent callers would (a Poisson process); a request's latency counts from the moment it was due, or the
waits that an overloaded server causes would not show ("coordinated omission", G. Tene).
"""

import asyncio
import collections
import dataclasses
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import numpy as np

from triton_face_client.async_client import AsyncFaceFeatureClient
from triton_face_client.errors import FaceServiceError
from triton_face_client.sample_faces import sample_faces

Ask = Callable[[float], Awaitable[None]]

PERCENTILES = (50, 90, 95, 99)

MOST_WAITING = 1000
"""Requests of an open loop under way; beyond it the server is hopelessly behind, and they count as failed."""


@dataclasses.dataclass(frozen=True)
class Load:
    """A load to put on the server.

    Attributes
    ----------
    seconds : float
        How long requests are started.
    batch : int
        Faces a request.
    concurrency : int
        Requests under way in a closed loop.
    rate : float or None
        Faces a second of an open loop; None for a closed one.
    """

    seconds: float
    batch: int
    concurrency: int
    rate: float | None


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What came of it.

    Attributes
    ----------
    loop : str
        "closed" or "open".
    batch : int
        Faces a request.
    concurrency : int or None
        Of a closed loop.
    rate : float or None
        Faces a second asked for, of an open loop.
    seconds : float
        From the first request to the last answer.
    due : int
        Requests started; of an open loop, those whose random moments fell into the time.
    requests : int
        Answered.
    failed : dict of str to int
        Not answered, by gRPC status.
    faces_a_second : float
        Answered.
    latency_ms : dict of str to float
        Percentiles and the largest, milliseconds; empty without an answer.
    """

    loop: str
    batch: int
    concurrency: int | None
    rate: float | None
    seconds: float
    due: int
    requests: int
    failed: dict[str, int]
    faces_a_second: float
    latency_ms: dict[str, float]


async def bench(client: AsyncFaceFeatureClient, load: Load) -> LoadReport:
    """Put a load on the server: made-up faces, uint8 crops, HOG and POSE.

    Parameters
    ----------
    client : AsyncFaceFeatureClient
        With a `batch_size` that takes a request's faces at once, and a `Retry` of 0 seconds: what is
        measured is a request, not the client's patience.
    load : Load
        The load.

    Raises
    ------
    FaceServiceError
        When the server does not answer before the load starts.
    """
    faces = sample_faces(load.batch)
    await client.features(*faces)
    latencies: list[float] = []
    failed: collections.Counter[str] = collections.Counter()

    async def ask(due: float) -> None:
        try:
            await client.features(*faces)
        except FaceServiceError as error:
            failed[str(error.status()).removeprefix("StatusCode.")] += 1
        else:
            latencies.append(time.perf_counter() - due)

    start = time.perf_counter()
    if load.rate is None:
        await _closed_loop(ask, start + load.seconds, load.concurrency)
    else:
        await _open_loop(ask, start, load, failed)
    elapsed = time.perf_counter() - start
    return LoadReport(
        loop="closed" if load.rate is None else "open",
        batch=load.batch,
        concurrency=load.concurrency if load.rate is None else None,
        rate=load.rate,
        seconds=elapsed,
        due=len(latencies) + failed.total(),
        requests=len(latencies),
        failed=dict(failed),
        faces_a_second=len(latencies) * load.batch / elapsed,
        latency_ms=_percentiles(latencies),
    )


def as_text(report: LoadReport) -> str:
    """Lay a report out as a few lines."""
    how = (
        f"{report.concurrency} requests at a time"
        if report.rate is None
        else f"{report.rate:g} faces/s at random moments"
    )
    failed = ", ".join(f"{count} {status}" for status, count in report.failed.items()) or "none"
    latency = "   ".join(f"{name} {value:.2f}" for name, value in report.latency_ms.items())
    return "\n".join(
        [
            f"{report.loop} loop, {how}, {report.batch} faces each, {report.seconds:.1f} s",
            f"answered     {report.requests} of {report.due} requests, {report.faces_a_second:.1f} faces/s",
            f"failed       {failed}",
            f"latency, ms  {latency or '-'}",
        ]
    )


async def _closed_loop(ask: Ask, end: float, concurrency: int) -> None:
    async def worker() -> None:
        while (now := time.perf_counter()) < end:
            await ask(now)

    await asyncio.gather(*(worker() for _ in range(concurrency)))


async def _open_loop(ask: Ask, start: float, load: Load, failed: collections.Counter[str]) -> None:
    waiting: set[asyncio.Task[None]] = set()
    async for due in _arrivals(start, load):
        if time.perf_counter() > start + load.seconds or len(waiting) >= MOST_WAITING:
            failed["NOT_SENT"] += 1
            continue
        task = asyncio.create_task(ask(due))
        waiting.add(task)
        task.add_done_callback(waiting.discard)
    await asyncio.gather(*waiting)


async def _arrivals(start: float, load: Load) -> AsyncIterator[float]:
    """Give the moments at which requests are due, when they are."""
    generator = np.random.default_rng(0)
    due = start
    while (due := due + generator.exponential(load.batch / load.rate)) < start + load.seconds:
        # Also when late: the answers need their turn of the event loop.
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        yield due


def _percentiles(latencies: list[float]) -> dict[str, float]:
    if not latencies:
        return {}
    values = 1e3 * np.percentile(latencies, [*PERCENTILES, 100])
    return dict(zip([*(f"p{p}" for p in PERCENTILES), "max"], map(float, values), strict=True))
