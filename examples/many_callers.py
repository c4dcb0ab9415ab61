"""Many callers on one event loop: deadlines, a cancelled call, faces that are refused.

    python -m examples.many_callers                 # with `make serve` running, or TRITON_FACE_URL set

What a web service in front of the features would do. Every caller has a few faces; the server joins their
requests into batches.
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
    """Ask about a few faces, one of which may be broken, and be content with an answer within two seconds."""
    frames, landmarks = sample_faces(FACES, seed=number)
    if number % 10 == 0:
        landmarks[1] = np.nan
    try:
        answers = await client.features(frames, landmarks, on_invalid="nan", deadline=2.0)
    except DeadlineError:
        return "too late"
    return "; ".join(answers.refused.values()) or "answered"


async def main() -> None:
    """Let all callers ask at once, and cancel one of them."""
    url = os.environ.get("TRITON_FACE_URL", "127.0.0.1:8001")
    async with AsyncFaceFeatureClient(url, retry=Retry(seconds=5), timeout=10) as client:
        await client.wait_until_ready(5)
        tasks = [asyncio.create_task(caller(client, number)) for number in range(CALLERS)]
        tasks[-1].cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    words = ["cancelled" if isinstance(outcome, asyncio.CancelledError) else outcome for outcome in outcomes]
    for word in sorted(set(words)):
        print(f"{words.count(word):>3} callers: {word}")


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except ServiceUnavailableError as error:
        sys.exit(error.message())
