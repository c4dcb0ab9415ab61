"""Which failed requests are sent again, and when.

Every request is a pure function of its faces, so that sending it twice does no harm. Sent again is what may
go well the next time: a server that is not there, has stopped or is full. What the server refuses because of
its content is never sent again, nor what timed out: that would load a slow server twice.
"""

import dataclasses
import random
from collections.abc import Iterator

from tritonclient.utils import InferenceServerException

AWAY = ("StatusCode.UNAVAILABLE", "StatusCode.CANCELLED")
"""No server, one that stops, a full queue. A stopping server cancels what it has not answered."""

AWAY_MESSAGES = (
    "Exceeds maximum queue size",
    # A Python model's process is gone (INTERNAL).
    "Stub process",
    # Models are unloaded while a server stops (NOT_FOUND); the client has seen this one before.
    "Request for unknown model",
)
"""What Triton says with another status, and what passes all the same."""

RESTRICTED = "This protocol is restricted"
"""What Triton says, as UNAVAILABLE, to who lacks a header."""


@dataclasses.dataclass(frozen=True)
class Retry:
    """How patient a request is.

    The waits are those of exponential backoff with full jitter (Brooker, "Exponential Backoff And Jitter",
    AWS Architecture Blog, 2015): uniform between 0 and a bound that doubles.

    Parameters
    ----------
    seconds : float
        How long a request may wait in all before its error is raised; 0 sends everything once. A server
        that is started again is back within this, with its models loaded.
    first : float
        Bound of the first wait, seconds.
    longest : float
        Largest bound, seconds.
    """

    seconds: float = 60.0
    first: float = 0.05
    longest: float = 2.0

    def __post_init__(self) -> None:
        """Refuse times that cannot be."""
        if not (self.seconds >= 0 and 0 < self.first <= self.longest):
            raise ValueError(f"{self}: seconds is at least 0, first more than 0, longest at least first")

    def waits(self) -> Iterator[float]:
        """Give the seconds to wait before each further try, until `seconds` are used up."""
        bound, left = self.first, self.seconds
        while left > 0:
            wait = min(random.uniform(0, bound), left)
            yield wait
            # At least a bit is used up by each try, or a chain of short waits would never end.
            left -= max(wait, 0.1 * bound)
            bound = min(2 * bound, self.longest)


def may_go_well_again(error: InferenceServerException) -> bool:
    """Tell whether the same request may be answered the next time."""
    message = error.message() or ""
    if message.startswith(RESTRICTED):
        return False
    return error.status() in AWAY or any(passing in message for passing in AWAY_MESSAGES)
