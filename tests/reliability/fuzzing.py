"""Hostile requests over gRPC and HTTP with sound ones between: refused with a reason, no harm to others."""

import collections
import contextlib
import dataclasses
import http.client

import grpc
import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from deploy.local import LocalServer
from tests.reliability.growth import growth
from tests.reliability.hostile import (
    ANSWER_SECONDS,
    Answer,
    Damaged,
    Hostile,
    damaged_requests,
    hostile_requests,
    over_grpc,
    over_http,
    send_damaged,
)
from tests.support.face_data import photo_faces
from tests.support.processes import resident_megabytes, shared_megabytes
from triton_face_client import FaceFeatureClient

SOUND_EVERY = 10
"""Hostile requests between two sound ones."""

MEMORY_EVERY = 500
"""Hostile requests between two looks at the server's memory."""

REFUSED = ("INVALID_ARGUMENT", "400")
"""gRPC's and HTTP's word for the caller's error."""

NOT_READABLE = {
    ("INTERNAL", "Unable to parse request"),
    ("NOT_FOUND", "Request for unknown model: ''"),
    ("500", "failed to parse the request JSON buffer"),
    ("500", "Unable to parse"),
}
"""What Triton itself says to a message that is none, or to JSON that is none or has a negative size in it."""


@dataclasses.dataclass(frozen=True)
class FuzzReport:
    """What came of it.

    Attributes
    ----------
    hostile, sound : int
        Requests sent.
    answers : dict of str to int
        What the hostile ones got, by status.
    grown_mb : float
        By how much the memory of the server's processes and /dev/shm has grown, as `growth` sees it.
    """

    hostile: int
    sound: int
    answers: dict[str, int]
    grown_mb: float


def is_refusal(answer: Answer) -> bool:
    """Tell whether a hostile request was refused as it should be: as the caller's error, with a reason."""
    if answer.status in REFUSED:
        return bool(answer.reason)
    return any(answer.status == status and answer.reason.startswith(text) for status, text in NOT_READABLE)


def fuzz(server: LocalServer, examples: int, derandomize: bool) -> FuzzReport:
    """Send hostile requests, each over gRPC and over HTTP, and sound ones between.

    Parameters
    ----------
    server : LocalServer
        A running server that nobody else uses.
    examples : int
        How many; two requests each, or one where a part of it was lost.
    derandomize : bool
        Draw the same ones every time.

    Raises
    ------
    AssertionError
        With the simplest request found that was not refused, and what it got; or when a sound request was
        not answered right, or the server is gone.
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
        @given(st.one_of(hostile_requests(), hostile_requests(), damaged_requests()))
        def send(request: Hostile | Damaged) -> None:
            session.send(request)

        send()
        session.check_sound()
        return session.report()


class _Session(contextlib.ExitStack):
    """Connections to a server, what sound requests must get, and the count of what the others got."""

    def __init__(self, server: LocalServer) -> None:
        super().__init__()
        self._server = server
        self._answers: collections.Counter[str] = collections.Counter()
        self._sound = 0
        self._memory_mb: list[float] = []
        self._channel = self.enter_context(grpc.insecure_channel(server.grpc_url))
        self._http = self.enter_context(
            contextlib.closing(
                http.client.HTTPConnection(*server.http_url.split(":"), timeout=ANSWER_SECONDS)
            )
        )
        self._client = self.enter_context(FaceFeatureClient(server.grpc_url))
        self._faces = photo_faces(3, 601)
        self._expected = self._client.features(*self._faces)

    def send(self, request: Hostile | Damaged) -> None:
        """Send a hostile request and, now and then, a sound one."""
        if isinstance(request, Damaged):
            answers = [send_damaged(self._channel, self._http, request)]
        else:
            answers = [over_grpc(self._channel, request), over_http(self._http, request)]
        for answer in answers:
            assert is_refusal(answer), f"{request} got {answer}"
            self._answers[answer.status] += 1
        if self._answers.total() // SOUND_EVERY > self._sound:
            self.check_sound()
        if self._answers.total() // MEMORY_EVERY > len(self._memory_mb):
            self._memory_mb.append(resident_megabytes(self._server.pid) + shared_megabytes())

    def check_sound(self) -> None:
        """Send a sound request and compare every bit of its answer."""
        answers = self._client.features(*self._faces)
        for name, expected in self._expected.items():
            np.testing.assert_array_equal(answers[name], expected)
        self._sound += 1

    def report(self) -> FuzzReport:
        """Sum up."""
        return FuzzReport(self._answers.total(), self._sound, dict(self._answers), growth(self._memory_mb))
