"""Fuzz test: hostile requests over gRPC and HTTP are rejected, valid requests between them succeed."""

import collections
import contextlib
import dataclasses
import http.client

import grpc
import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from deploy.local import LocalServer
from tests.reliability.hostile_requests import (
    RESPONSE_SECONDS,
    HostileRequest,
    Response,
    TruncatedRequest,
    hostile_requests,
    send_over_grpc,
    send_over_http,
    send_truncated,
    truncated_requests,
)
from tests.reliability.memory_growth import growth
from tests.support.face_data import photo_faces
from tests.support.processes import resident_megabytes, shared_megabytes
from triton_face_client import FaceFeatureClient

HOSTILE_PER_VALID = 10
"""Hostile requests between two valid ones."""

HOSTILE_PER_SAMPLE = 500
"""Hostile requests between two samples of the server's memory."""

REJECTED = ("INVALID_ARGUMENT", "400")
"""Statuses of a caller's error, in gRPC and in HTTP."""

UNREADABLE = {
    ("INTERNAL", "Unable to parse request"),
    ("NOT_FOUND", "Request for unknown model: ''"),
    ("500", "failed to parse the request JSON buffer"),
    ("500", "Unable to parse"),
}
"""Triton's status and message for bytes that are neither a gRPC message nor JSON, or for a negative size."""


@dataclasses.dataclass(frozen=True)
class FuzzReport:
    """Outcome of a run.

    Attributes
    ----------
    hostile, valid : int
        Requests sent.
    statuses : dict of str to int
        Status -> number of hostile requests that got it.
    growth_mb : float
        Growth of the memory of the server's processes and of /dev/shm.
    """

    hostile: int
    valid: int
    statuses: dict[str, int]
    growth_mb: float


def is_rejection(response: Response) -> bool:
    """Return whether a response rejects a hostile request as the caller's error, with a reason."""
    if response.status in REJECTED:
        return bool(response.reason)
    return any(response.status == status and response.reason.startswith(text) for status, text in UNREADABLE)


def fuzz(server: LocalServer, examples: int, derandomize: bool) -> FuzzReport:
    """Send hostile requests, each over gRPC and over HTTP, and valid requests between them.

    Parameters
    ----------
    server : LocalServer
        A running server without other callers.
    examples : int
        Number of hostile requests. Each is sent twice, a truncated one once.
    derandomize : bool
        Draw the same requests in every run.

    Raises
    ------
    AssertionError
        If a hostile request is not rejected (with the simplest such request and its response), or if a valid
        request gets a wrong response.
    """
    with _Session(server) as session:

        @settings(
            max_examples=examples,
            derandomize=derandomize,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink],
        )
        @given(st.one_of(hostile_requests(), hostile_requests(), truncated_requests()))
        def send(request: HostileRequest | TruncatedRequest) -> None:
            session.send(request)

        send()
        session.check_valid_request()
        return session.report()


class _Session(contextlib.ExitStack):
    """Connections to a server, the expected outputs of valid requests, and counts of responses."""

    def __init__(self, server: LocalServer) -> None:
        super().__init__()
        self._server = server
        self._statuses: collections.Counter[str] = collections.Counter()
        self._valid = 0
        self._memory_mb: list[float] = []
        self._channel = self.enter_context(grpc.insecure_channel(server.grpc_url))
        self._http = self.enter_context(
            contextlib.closing(
                http.client.HTTPConnection(*server.http_url.split(":"), timeout=RESPONSE_SECONDS)
            )
        )
        self._client = self.enter_context(FaceFeatureClient(server.grpc_url))
        self._faces = photo_faces(3, 601)
        self._expected = self._client.features(*self._faces)

    def send(self, request: HostileRequest | TruncatedRequest) -> None:
        """Send a hostile request. In regular intervals, also send a valid request and sample the memory."""
        if isinstance(request, TruncatedRequest):
            responses = [send_truncated(self._channel, self._http, request)]
        else:
            responses = [send_over_grpc(self._channel, request), send_over_http(self._http, request)]
        for response in responses:
            assert is_rejection(response), f"{request} got {response}"
            self._statuses[response.status] += 1
        if self._statuses.total() // HOSTILE_PER_VALID > self._valid:
            self.check_valid_request()
        if self._statuses.total() // HOSTILE_PER_SAMPLE > len(self._memory_mb):
            self._memory_mb.append(resident_megabytes(self._server.pid) + shared_megabytes())

    def check_valid_request(self) -> None:
        """Send a valid request and compare every bit of its outputs."""
        outputs = self._client.features(*self._faces)
        for name, expected in self._expected.items():
            np.testing.assert_array_equal(outputs[name], expected)
        self._valid += 1

    def report(self) -> FuzzReport:
        """Return the outcome so far."""
        return FuzzReport(self._statuses.total(), self._valid, dict(self._statuses), growth(self._memory_mb))
