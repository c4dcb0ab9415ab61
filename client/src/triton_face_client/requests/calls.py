"""Calls in progress: create their requests, collect their outputs, limit the requests in flight."""

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triton_face_client.requests.answers import Answers
from triton_face_client.requests.faces import RequestFaces, Tensors
from triton_face_client.requests.model_config import Model
from triton_face_client.requests.request import (
    ActionGenerator,
    BatchRequest,
    CallOptions,
    InvalidFaces,
    RequestGenerator,
    run_request,
)
from triton_face_client.torch_bridge import as_type_of
from triton_face_client.transports.base import Transport


class Call:
    """A call, from its faces to its `Answers`.

    Parameters
    ----------
    model : Model
        The model that computes the outputs.
    faces : RequestFaces
        The faces.
    outputs : tuple of str
        The requested outputs.
    invalid : dict of int to str
        Index of each face that the client has found invalid and does not send, and the reason.
    example : Any
        An argument of the call. For a tensor or a list of tensors, the outputs are tensors on that device.

    Attributes
    ----------
    all_started : bool
        Whether all requests of the call have been started.
    """

    def __init__(
        self,
        model: Model,
        faces: RequestFaces,
        outputs: tuple[str, ...],
        invalid: Mapping[int, str],
        example: Any,
    ) -> None:
        model.check_outputs(outputs)
        self._model, self._faces, self._outputs, self._example = model, faces, outputs, example
        self._invalid = dict(invalid)
        self._arrays: Tensors = {}
        for name in outputs:
            datatype, shape = model.outputs[name]
            self._arrays[name] = np.empty((len(faces), *shape), datatype)
        self._batches = faces.batches(model.batch_size, self._invalid)
        self._in_progress = 0
        self.all_started = False

    @property
    def is_complete(self) -> bool:
        """Whether the outputs of all faces have arrived."""
        return self.all_started and not self._in_progress

    def next_request(self, options: CallOptions, transport: Transport) -> ActionGenerator | None:
        """Return the generator of the next request, or None if all requests have been started."""
        rows = next(self._batches, None)
        if rows is None:
            self.all_started = True
            return None
        self._in_progress += 1
        request = BatchRequest(self._model, self._faces, rows, self._outputs, self._store)
        return self._run(request, options, transport)

    def answers(self) -> Answers:
        """Return the answers of a complete call."""
        arrays = {}
        for name, array in self._arrays.items():
            array[list(self._invalid)] = _missing_value(array.dtype)
            arrays[name] = as_type_of(self._example, array)
        return Answers(arrays, self._invalid)

    def _run(self, request: BatchRequest, options: CallOptions, transport: Transport) -> RequestGenerator:
        invalid: InvalidFaces = yield from run_request(request, options, transport)
        self._invalid |= invalid
        self._in_progress -= 1
        return invalid

    def _store(self, rows: NDArray[np.intp], outputs: Tensors) -> None:
        for name, values in outputs.items():
            self._arrays[name][rows] = values


class CallWindow:
    """The calls in progress, with at most `in_flight` requests in flight.

    Answers are returned in the order of the calls. While a call is slow, the answers of later calls stay in
    memory; the window therefore holds at most ``2 * in_flight`` calls.
    """

    def __init__(self, in_flight: int) -> None:
        self._max_in_flight = in_flight
        self._calls: deque[Call] = deque()
        self._in_flight = 0

    @property
    def has_room(self) -> bool:
        """Whether another call can be added: the window is not full, and all requests have been started."""
        return len(self._calls) < 2 * self._max_in_flight and all(call.all_started for call in self._calls)

    @property
    def is_empty(self) -> bool:
        """Whether no call is in progress."""
        return not self._calls

    def add(self, call: Call) -> None:
        """Add a call behind the others."""
        self._calls.append(call)

    def next_request(self, options: CallOptions, transport: Transport) -> ActionGenerator | None:
        """Return the generator of a request to start now, or None if no request can start."""
        for call in self._calls:
            if self._in_flight == self._max_in_flight:
                return None
            if not call.all_started and (request := call.next_request(options, transport)) is not None:
                self._in_flight += 1
                return request
        return None

    def on_request_complete(self) -> None:
        """Record that a request has ended and is no longer in flight."""
        self._in_flight -= 1

    def pop_complete(self) -> Iterator[Answers]:
        """Remove the complete calls at the front; yield their answers."""
        while self._calls and self._calls[0].is_complete:
            yield self._calls.popleft().answers()


def _missing_value(datatype: np.dtype[Any]) -> Any:
    """Return the value that marks rows without a result."""
    if np.issubdtype(datatype, np.floating):
        return np.nan
    return np.iinfo(datatype).min if np.issubdtype(datatype, np.integer) else False
