"""A server stops while requests are in flight: which requests succeed, which processes and files remain."""

import dataclasses
import threading
import time
from pathlib import Path

import numpy as np
from tritonclient.grpc import InferenceServerClient, InferRequestedOutput, InferResult
from tritonclient.utils import InferenceServerException

from deploy.local import LocalServer
from deploy.local.supervisor import server_processes
from tests.support.face_data import photo_faces
from tests.support.raw_requests import tensor_input

REQUESTS = 60
"""Number of requests before the stop: about a second of work."""

REQUEST_FACES = 32

FRAME_SIZE = (24, 24)
"""Height and width. Small frames reach the server at once and cost as much as large ones to compute."""

SEND_SECONDS = 0.4
"""Pause before the stop. By then the server has received all requests and most of them are in flight."""

PAUSE_SECONDS = 0.02

RESPONSE_SECONDS = 6.0
"""Longest wait for missing responses once the server has ended."""


@dataclasses.dataclass(frozen=True)
class StopReport:
    """Outcome of a stop.

    Attributes
    ----------
    accepted, in_flight, succeeded : int
        Requests before the stop: all; those without a response when it began; those with a bit-identical
        response.
    later : int
        Requests sent after the stop began.
    without_response : int
        Requests, earlier or later, that got neither a response nor an error.
    seconds : float
        Duration of the stop.
    remains : list of str
        The server's processes and files in /dev/shm that exist after the stop.
    """

    accepted: int
    in_flight: int
    succeeded: int
    later: int
    without_response: int
    seconds: float
    remains: list[str]


def stop_under_load(
    repository: Path, model: str, output: str, au_repository: Path | None = None
) -> StopReport:
    """Stop a server while requests for one output of a model are in flight and further ones arrive."""
    server = LocalServer(repository, au_repository=au_repository)
    with server, InferenceServerClient(server.grpc_url) as connection:
        requests = _Requests(connection, model, output)
        processes = server_processes(server.pid)
        requests.send(REQUESTS)
        time.sleep(SEND_SECONDS)
        in_flight = requests.is_right.count(None)
        start = time.monotonic()
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        while stopping.is_alive():
            requests.send(1)
            time.sleep(PAUSE_SECONDS)
        seconds = time.monotonic() - start
        requests.wait()
    remains = [process.name for process in processes if Path(f"/proc/{process.pid}").exists()]
    remains += [path.name for path in server.shared_memory()]
    return StopReport(
        accepted=REQUESTS,
        in_flight=in_flight,
        succeeded=requests.is_right[:REQUESTS].count(True),
        later=len(requests.is_right) - REQUESTS,
        without_response=requests.is_right.count(None),
        seconds=seconds,
        remains=remains,
    )


class _Requests:
    """Asynchronous requests. `is_right` has one entry for each: None until it has a response or an error."""

    def __init__(self, connection: InferenceServerClient, model: str, output: str) -> None:
        frames, landmarks = photo_faces(REQUEST_FACES, 612, FRAME_SIZE)
        frames = (255 * frames).astype(np.uint8)
        self._connection = connection
        self._model, self._output = model, output
        self._inputs = [
            tensor_input(name, values)
            for name, values in (("FRAMES_UINT8", frames), ("LANDMARKS", landmarks))
        ]
        self._outputs = [InferRequestedOutput(output)]
        self._expected = connection.infer(model, self._inputs, outputs=self._outputs).as_numpy(output)
        self.is_right: list[bool | None] = []

    def send(self, count: int) -> None:
        """Send requests without waiting for responses."""
        for _ in range(count):
            self.is_right.append(None)

            def on_response(
                result: InferResult | None,
                error: InferenceServerException | None,
                number: int = len(self.is_right) - 1,
            ) -> None:
                self.is_right[number] = error is None and np.array_equal(
                    result.as_numpy(self._output), self._expected
                )

            self._connection.async_infer(self._model, self._inputs, on_response, outputs=self._outputs)

    def wait(self) -> None:
        """Wait for missing responses, `RESPONSE_SECONDS` at most."""
        deadline = time.monotonic() + RESPONSE_SECONDS
        while None in self.is_right and time.monotonic() < deadline:
            time.sleep(PAUSE_SECONDS)
