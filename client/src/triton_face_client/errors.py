"""What can go wrong in a call, as exceptions of their own."""

from collections.abc import Mapping

from tritonclient.utils import InferenceServerException


class FaceServiceError(InferenceServerException):
    """The service did not answer; the message is one line and says what to do.

    `status()` gives the gRPC status, such as ``"StatusCode.INTERNAL"``, where there is one.
    """


class ServiceUnavailableError(FaceServiceError, ConnectionError):
    """No server answers, or the one that does is not ready or has stopped."""


class DeadlineError(FaceServiceError, TimeoutError):
    """The call's deadline or a request's timeout has passed."""


class InvalidFacesError(FaceServiceError, ValueError):
    """Faces that the service refuses.

    Attributes
    ----------
    reasons : dict of int to str
        The index of each face in the call, and what is wrong with it. The first few, where many are bad.
    """

    def __init__(self, reasons: Mapping[int, str], unnamed: int = 0) -> None:
        named = [f"face {face}: {reasons[face]}" for face in sorted(reasons)]
        named += [f"and {unnamed} more"] * bool(unnamed)
        super().__init__(
            f"{'; '.join(named)} (on_invalid='nan' answers the other faces)",
            status="StatusCode.INVALID_ARGUMENT",
        )
        self.reasons = dict(reasons)
