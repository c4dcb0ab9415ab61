"""Exceptions of the client, and the gRPC statuses that it distinguishes."""

from collections.abc import Mapping

from tritonclient.utils import InferenceServerException

INVALID_ARGUMENT = "StatusCode.INVALID_ARGUMENT"
DEADLINE_EXCEEDED = "StatusCode.DEADLINE_EXCEEDED"
NOT_FOUND = "StatusCode.NOT_FOUND"


# tritonclient has no type hints, so mypy sees its exception as Any.
class FaceServiceError(InferenceServerException):  # type: ignore[misc]
    """Base class of the client's errors.

    `status()` returns the gRPC status, such as ``"StatusCode.INTERNAL"``, or None if there is none.
    """

    def __init__(self, message: str, status: str | None = None) -> None:
        super().__init__(message, status)


class ServiceUnavailableError(FaceServiceError, ConnectionError):
    """No server answers, or the server is not ready, is stopping or has full queues."""


class DeadlineError(FaceServiceError, TimeoutError):
    """The deadline of a call or the timeout of a request has passed."""


class InvalidFacesError(FaceServiceError, ValueError):
    """The service rejects faces.

    Parameters
    ----------
    reasons : mapping of int to str
        Index of each invalid face in the call, and the reason. The server names up to eight faces per
        request.
    unnamed : int
        Number of further invalid faces, which the server does not name.

    Attributes
    ----------
    reasons : dict of int to str
        A copy of the parameter.
    """

    def __init__(self, reasons: Mapping[int, str], unnamed: int = 0) -> None:
        named = [f"face {face}: {reasons[face]}" for face in sorted(reasons)]
        named += [f"and {unnamed} more"] * bool(unnamed)
        super().__init__(
            f"{'; '.join(named)} (on_invalid='nan' computes the other faces)", status=INVALID_ARGUMENT
        )
        self.reasons = dict(reasons)
