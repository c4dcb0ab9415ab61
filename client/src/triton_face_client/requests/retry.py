"""Rules for retries: which errors are retryable, and the waits between attempts.

The response depends on the faces only, so a request can be sent twice without harm. The client retries when a
later attempt can succeed: the server is unreachable, is stopping or has full queues. It does not retry a
request that the server rejects for its content. Nor does it retry a request that timed out, because a retry
would double the load of a slow server.
"""

import dataclasses
import random
from collections.abc import Iterator

from tritonclient.utils import InferenceServerException

RETRYABLE_STATUS = ("StatusCode.UNAVAILABLE", "StatusCode.CANCELLED")
"""UNAVAILABLE: server unreachable or stopping, or queue full. CANCELLED: server stops during the request."""

RETRYABLE_MESSAGES = (
    "Exceeds maximum queue size",
    # With status INTERNAL: the stub process of a Python model has died.
    "Stub process",
    # With status NOT_FOUND, for a model that the server had: the server is stopping and has unloaded it.
    "Request for unknown model",
)
"""Parts of Triton's messages for temporary failures, which may have other statuses."""

RESTRICTED_ENDPOINT = "This protocol is restricted"
"""Start of Triton's UNAVAILABLE message for a request without the key of a restricted endpoint."""


@dataclasses.dataclass(frozen=True)
class Retry:
    """Total time of a request's retries, and the waits between them.

    The waits follow exponential backoff with full jitter: each wait is random, uniform between 0 and a bound
    that doubles from attempt to attempt (Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog,
    2015).

    Parameters
    ----------
    seconds : float
        Maximum sum of a request's waits, after which the last error is raised. 0 sends every request once.
        The default covers the restart of a server, including the loading of its models.
    first : float
        Upper bound of the first wait, in seconds.
    longest : float
        Upper bound of all waits, in seconds.

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
        """Yield the seconds to wait before each further attempt, until `seconds` are used up."""
        bound, left = self.first, self.seconds
        while left > 0:
            wait = min(random.uniform(0, bound), left)
            yield wait
            # Subtract a minimum for each attempt, so that the number of attempts is limited.
            left -= max(wait, 0.1 * bound)
            bound = min(2 * bound, self.longest)


def is_retryable(error: InferenceServerException) -> bool:
    """Return whether the same request may succeed on another attempt."""
    message = error.message() or ""
    if message.startswith(RESTRICTED_ENDPOINT):
        return False
    return error.status() in RETRYABLE_STATUS or any(part in message for part in RETRYABLE_MESSAGES)
