"""Which failed requests are sent again, and after which wait.

A request is a pure function of its faces, so sending it twice does no harm. The client retries when a later
try can succeed: the server is unreachable, is stopping or has full queues. It never retries a request that
the server rejects for its content, nor a request that timed out, because a retry would double the load of a
slow server.
"""

import dataclasses
import random
from collections.abc import Iterator

from tritonclient.utils import InferenceServerException

RETRYABLE_STATUS = ("StatusCode.UNAVAILABLE", "StatusCode.CANCELLED")
"""Server unreachable or stopping, or queue full. A stopping server cancels requests in progress."""

RETRYABLE_MESSAGES = (
    "Exceeds maximum queue size",
    # INTERNAL: the stub process of a Python model has died.
    "Stub process",
    # NOT_FOUND: a stopping server has unloaded the model, which the client has used before.
    "Request for unknown model",
)
"""Triton's messages for temporary failures that have another status."""

RESTRICTED_ENDPOINT = "This protocol is restricted"
"""Start of Triton's UNAVAILABLE message for a caller without the key of a restricted endpoint."""


@dataclasses.dataclass(frozen=True)
class Retry:
    """How long, and at which intervals, a request is sent again.

    Waits follow exponential backoff with full jitter: each wait is uniform between 0 and a bound that
    doubles from try to try (Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015).

    Parameters
    ----------
    seconds : float
        Total wait of a request before its error is raised; 0 sends every request once. The default covers
        the restart of a server including the loading of its models.
    first : float
        Bound of the first wait, in seconds.
    longest : float
        Largest bound, in seconds.

    Raises
    ------
    ValueError
        Unless ``seconds >= 0`` and ``0 < first <= longest``.
    """

    seconds: float = 60.0
    first: float = 0.05
    longest: float = 2.0

    def __post_init__(self) -> None:
        """Check the parameters."""
        if not (self.seconds >= 0 and 0 < self.first <= self.longest):
            raise ValueError(f"{self}: seconds is at least 0, first more than 0, longest at least first")

    def waits(self) -> Iterator[float]:
        """Yield the seconds to wait before each further try, until `seconds` are used up."""
        bound, left = self.first, self.seconds
        while left > 0:
            wait = min(random.uniform(0, bound), left)
            yield wait
            # Each try uses up a minimum, so that a series of short waits ends.
            left -= max(wait, 0.1 * bound)
            bound = min(2 * bound, self.longest)


def is_retryable(error: InferenceServerException) -> bool:
    """Return whether the same request may succeed on another try."""
    message = error.message() or ""
    if message.startswith(RESTRICTED_ENDPOINT):
        return False
    return error.status() in RETRYABLE_STATUS or any(part in message for part in RETRYABLE_MESSAGES)
