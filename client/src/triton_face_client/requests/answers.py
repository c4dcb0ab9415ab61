"""A call's answers, gathered row by row, and the calls that are under way at a time."""

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from triton_face_client.requests.faces import Faces, Tensors
from triton_face_client.requests.model_config import Model
from triton_face_client.requests.request import Conversation, Policy, Question, converse
from triton_face_client.torch_bridge import like
from triton_face_client.transports.messages import Transport


class Answers(dict[str, Any]):
    """Output names and their arrays, a row for each face of the call, in its order.

    Attributes
    ----------
    refused : dict of int to str
        With ``on_invalid="nan"``, the faces that have no answer, and why. Their rows are NaN; False in MASK,
        and the smallest int64 in ALIGNED_LANDMARKS, which have no NaN.
    """

    def __init__(self, arrays: Mapping[str, Any], refused: Mapping[int, str]) -> None:
        super().__init__(arrays)
        self.refused = dict(refused)


class Call:
    """The faces of one call, on their way.

    Parameters
    ----------
    model : Model
        Who is asked.
    faces : Faces
        About what.
    outputs : tuple of str
        For what.
    refused : dict of int to str
        Faces that are not worth sending, and why.
    example : Any
        Answers are tensors on its device if it is a tensor.
    """

    def __init__(
        self,
        model: Model,
        faces: Faces,
        outputs: tuple[str, ...],
        refused: Mapping[int, str],
        example: Any,
    ) -> None:
        model.check_outputs(outputs)
        self._model, self._faces, self._outputs, self._example = model, faces, outputs, example
        self._refused = dict(refused)
        self._arrays: Tensors = {}
        for name in outputs:
            datatype, shape = model.outputs[name]
            self._arrays[name] = np.empty((len(faces), *shape), datatype)
        self._unsent = faces.batches(model.batch_size, self._refused)
        self._under_way = 0
        self.all_sent = False

    @property
    def is_complete(self) -> bool:
        """Tell whether every face has its answer."""
        return self.all_sent and not self._under_way

    def next_conversation(self, policy: Policy, transport: Transport) -> Conversation | None:
        """Return the conversation about the next request, or None when all have begun."""
        rows = next(self._unsent, None)
        if rows is None:
            self.all_sent = True
            return None
        self._under_way += 1
        question = Question(self._model, self._faces, rows, self._outputs, self._deliver)
        return self._converse(question, policy, transport)

    def answers(self) -> Answers:
        """Return the answers of a complete call."""
        for name, array in self._arrays.items():
            array[list(self._refused)] = _missing(array.dtype)
            self._arrays[name] = like(array, self._example)
        return Answers(self._arrays, self._refused)

    def _converse(self, question: Question, policy: Policy, transport: Transport) -> Conversation:
        refused = yield from converse(question, policy, transport)
        self._refused |= refused
        self._under_way -= 1
        return refused

    def _deliver(self, rows: np.ndarray, tensors: Tensors) -> None:
        for name, values in tensors.items():
            self._arrays[name][rows] = values


class Window:
    """Which requests may be under way: at most `in_flight`, of a bounded number of calls.

    Calls are given back in their order. One that is slow holds back those behind it, whose answers wait in
    memory; so no more than twice as many calls as requests are open.
    """

    def __init__(self, in_flight: int) -> None:
        self._in_flight = in_flight
        self._open: deque[Call] = deque()
        self._under_way = 0

    @property
    def wants_call(self) -> bool:
        """Tell whether another call could begin."""
        return len(self._open) < 2 * self._in_flight and all(call.all_sent for call in self._open)

    @property
    def is_empty(self) -> bool:
        """Tell whether every call has been given back."""
        return not self._open

    def add(self, call: Call) -> None:
        """Take a call in, behind the others."""
        self._open.append(call)

    def next_conversation(self, policy: Policy, transport: Transport) -> Conversation | None:
        """Return a conversation that may begin now, or None."""
        for call in self._open:
            if self._under_way == self._in_flight:
                return None
            if not call.all_sent and (conversation := call.next_conversation(policy, transport)) is not None:
                self._under_way += 1
                return conversation
        return None

    def has_ended(self) -> None:
        """Note that a conversation is over."""
        self._under_way -= 1

    def complete(self) -> Iterator[Answers]:
        """Give back the calls at the front that are complete."""
        while self._open and self._open[0].is_complete:
            yield self._open.popleft().answers()


def _missing(datatype: np.dtype) -> Any:
    """Return what stands for no value."""
    if np.issubdtype(datatype, np.floating):
        return np.nan
    return np.iinfo(datatype).min if np.issubdtype(datatype, np.integer) else False
