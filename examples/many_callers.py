"""Serve many callers on one event loop, with deadlines, a cancelled call and invalid faces.

    python -m examples.many_callers                 # with `make serve` running, or TRITON_FACE_URL set

A web service that computes features for its users can work like this. Each caller sends a few faces, and the
server joins the requests of all callers into dynamic batches.
"""

import asyncio
import os
import sys

import numpy as np

from triton_face_client import AsyncFaceFeatureClient, DeadlineError, Retry, ServiceUnavailableError
from triton_face_client.sample_faces import sample_faces

CALLERS = 50
FACES = 3


async def caller(client: AsyncFaceFeatureClient, number: int) -> str:
    """Send a few faces, one of them maybe invalid, with a deadline of two seconds."""
    frames, landmarks = sample_faces(FACES, seed=number)
    if number % 10 == 0:
        landmarks[1] = np.nan
    try:
        answers = await client.features(frames, landmarks, on_invalid="nan", deadline=2.0)
    except DeadlineError:
        return "too late"
    return "; ".join(answers.refused.values()) or "answered"


async def main() -> None:
    """Start all callers at once and cancel one of them."""
    url = os.environ.get("TRITON_FACE_URL", "127.0.0.1:8001")
    async with AsyncFaceFeatureClient(url, retry=Retry(seconds=5), timeout=10) as client:
        await client.wait_until_ready(5)
        tasks = [asyncio.create_task(caller(client, number)) for number in range(CALLERS)]
        tasks[-1].cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    results = [
        "cancelled" if isinstance(outcome, asyncio.CancelledError) else outcome for outcome in outcomes
    ]
    for result in sorted(set(results)):
        print(f"{results.count(result):>3} callers: {result}")


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except ServiceUnavailableError as error:
        sys.exit(error.message())
