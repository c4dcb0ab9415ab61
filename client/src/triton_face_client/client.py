"""Blocking calls of the service over gRPC, from arrays to arrays."""

import contextlib
import functools
import heapq
import itertools
import queue
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tritonclient.grpc import InferenceServerClient, InferResult
from tritonclient.utils import InferenceServerException

from triton_face_client.answers import Answers, Call, Window
from triton_face_client.errors import ServiceUnavailableError
from triton_face_client.exchange import (
    MANAGE_SECONDS,
    Action,
    Conversation,
    Policy,
    Send,
    Wait,
    take_leave,
)
from triton_face_client.service import Model
from triton_face_client.settings import Settings
from triton_face_client.transport import Manage

Reply = InferResult | InferenceServerException | None


class FaceFeatureClient(Settings):
    """A connection to the service. Use it as a context manager, or `close` it.

    Calls take any number of faces: they are cut into requests that the server takes, several of which are
    under way at a time, and answered in their order. The connection may be shared by threads.

    Its parameters are those of `Settings`.

    Raises
    ------
    InvalidFacesError
        From every call, when the service refuses a face; it names the face and the reason.
    ServiceUnavailableError
        When no server answers: at once on the first call, else after `retry`.
    DeadlineError
        When a request takes longer than `timeout`, or the call longer than its deadline.
    FaceServiceError
        When the server fails; all of these are `tritonclient.utils.InferenceServerException` too.
    ValueError
        For arrays of another shape or type than said.

    Examples
    --------
    >>> with FaceFeatureClient("127.0.0.1:8001") as client:
    ...     answers = client.features(frames, landmarks, ["HOG", "POSE"])
    """

    def __enter__(self) -> "FaceFeatureClient":
        """Return the client itself."""
        return self

    def __exit__(self, *_exception: object) -> None:
        """Close the connection."""
        self.close()

    @functools.cached_property
    def connection(self) -> InferenceServerClient:
        """Return tritonclient's client of the same endpoint."""
        return InferenceServerClient(**self._channel_arguments)

    def close(self) -> None:
        """Close the connection and give its shared memory back."""
        with contextlib.closing(_Turns(self.connection, self.headers)) as turns:
            turns.begin(take_leave(self._transport))
            turns.run_until_one_ends()
        self.connection.close()

    def features(
        self,
        frames: Any,
        landmarks: Any,
        outputs: Sequence[str] = ("HOG", "POSE"),
        *,
        on_invalid: str = "raise",
        deadline: float | None = None,
    ) -> Answers:
        """Compute AU features and head pose.

        Parameters
        ----------
        frames : array or torch tensor, shape (N, 3, H, W), or sequence of N of shape (3, H, W)
            Face crops or whole frames, one per face: floating in [0, 1], sent as float32, or uint8 from 0 to
            255, sent as such, a quarter of the bytes, and divided by 255 in float32 on the server. In a
            sequence they may differ in size. For POSE alone they are not looked at and may be None.
        landmarks : array or torch tensor, shape (N, 68, 2)
            iBUG/OpenFace landmarks (x, y) in pixels of `frames`.
        outputs : sequence of str
            Any of `ENSEMBLE_OUTPUTS`; what is not asked for is not computed.
        on_invalid : {"raise", "nan"}
            Whether a face that the service refuses fails the call, or gets rows of NaN and its reason in
            `Answers.refused` while every other face is answered.
        deadline : float, optional
            Seconds until the call as a whole fails.

        Returns
        -------
        Answers
            HOG float32 ``[N, 5408]``; POSE float32 ``[N, 6]``, raw Pitch, Roll, Yaw in radians, X, Y, Z
            (see `subject_pose`); ALIGNED_LANDMARKS int64 ``[N, 68, 2]``; AFFINE float32 ``[N, 2, 3]``,
            frame pixels to aligned pixels; MASK bool ``[N, 112, 112]``. Tensors, if `frames` is one.
        """
        if tuple(outputs) == ("POSE",):
            pose, refused = self._pose("ensemble", landmarks, on_invalid, deadline)
            return Answers({"POSE": pose}, refused)
        policy = self._policy(on_invalid, deadline)
        call = self._face_call(self.model("ensemble"), frames, landmarks, outputs)
        return self._answer(call, policy)

    def align(
        self,
        frames: Any,
        landmarks: Any,
        outputs: Sequence[str] = ("MASKED_FACES", "ALIGNED_LANDMARKS"),
        *,
        on_invalid: str = "raise",
        deadline: float | None = None,
    ) -> Answers:
        """Align and mask faces; parameters as of `features`.

        Returns
        -------
        Answers
            Any of `ALIGN_MASK_OUTPUTS`: MASKED_FACES and ALIGNED_FACES float32 ``[N, 3, 112, 112]``,
            the others as from `features`.
        """
        policy = self._policy(on_invalid, deadline)
        call = self._face_call(self.model("align_mask"), frames, landmarks, outputs)
        return self._answer(call, policy)

    def pose(self, landmarks: Any, *, on_invalid: str = "raise", deadline: float | None = None) -> Any:
        """Compute raw head pose from landmarks alone.

        Parameters
        ----------
        landmarks : array or torch tensor, shape (N, 68, 2)
            Pixels, y down, of an image that is not stretched.
        on_invalid, deadline
            As of `features`. Invalid are non-finite landmarks, and outer eye corners in one place.

        Returns
        -------
        ndarray or torch tensor of float32, shape (N, 6)
            As POSE of `features`.
        """
        return self._pose("pose_mlp", landmarks, on_invalid, deadline)[0]

    def stream(
        self,
        chunks: Iterable[tuple[Any, Any]],
        outputs: Sequence[str] = ("HOG", "POSE"),
        *,
        on_invalid: str = "raise",
    ) -> Iterator[Answers]:
        """Answer an endless sequence of chunks of faces, in their order and in bounded memory.

        Parameters
        ----------
        chunks : iterable of (frames, landmarks)
            Each as of `features`. It is read a little ahead of the answers.
        outputs, on_invalid
            As of `features`.

        Yields
        ------
        Answers
            Of each chunk.
        """
        model, policy = self.model("ensemble"), self._policy(on_invalid, None)
        yield from self._answers((self._face_call(model, *chunk, outputs) for chunk in chunks), policy)

    def model(self, name: str) -> Model:
        """Return what a model takes and gives, as the server's configuration has it; asked for once."""
        if name not in self._models:
            try:
                reply = self.connection.get_model_config(
                    name, headers=self.headers, client_timeout=self.timeout
                )
            except InferenceServerException as error:
                raise self.first_contact_error(error, name) from None
            self._models[name] = Model.from_config(reply.config, self.batch_size)
        return self._models[name]

    def wait_until_ready(self, seconds: float) -> None:
        """Wait until the server and its models are ready.

        Raises
        ------
        ServiceUnavailableError
            When they are not after so many seconds.
        """
        end = time.monotonic() + seconds
        while True:
            with contextlib.suppress(InferenceServerException):
                if self.connection.is_server_ready(self.headers, client_timeout=self.timeout):
                    return
            if time.monotonic() > end:
                raise ServiceUnavailableError(f"{self.target} was not ready after {seconds:g} s")
            time.sleep(0.1)

    def _pose(
        self, model: str, landmarks: Any, on_invalid: str, deadline: float | None
    ) -> tuple[Any, Mapping[int, str]]:
        policy = self._policy(on_invalid, deadline)
        call = self._pose_call(self.model(model), landmarks, policy)
        answers = self._answer(call, policy)
        return answers["POSE"], answers.refused

    def _answer(self, call: Call, policy: Policy) -> Answers:
        with contextlib.closing(self._answers(iter([call]), policy)) as answers:
            return next(answers)

    def _answers(self, calls: Iterator[Call], policy: Policy) -> Iterator[Answers]:
        window = Window(self.in_flight)
        with contextlib.closing(_Turns(self.connection, self.headers)) as turns:
            while True:
                while window.wants_call and (call := next(calls, None)) is not None:
                    window.add(call)
                    self._begin_all(window, policy, turns)
                self._begin_all(window, policy, turns)
                complete = list(window.complete())
                yield from complete
                if window.is_empty and not complete:
                    return
                if not complete:
                    turns.run_until_one_ends()
                    window.has_ended()

    def _begin_all(self, window: Window, policy: Policy, turns: "_Turns") -> None:
        while (conversation := window.next_conversation(policy, self._transport)) is not None:
            turns.begin(conversation)


class _Turns:
    """Conversations that take turns on one thread; gRPC's own threads only hand their replies over."""

    def __init__(self, connection: InferenceServerClient, headers: Mapping[str, str]) -> None:
        self._connection = connection
        self._headers = headers
        self._replies: queue.SimpleQueue[tuple[Conversation, Reply]] = queue.SimpleQueue()
        self._sent: dict[Conversation, Any] = {}
        self._waiting: list[tuple[float, int, Conversation]] = []
        self._ticket = itertools.count()
        self._ended = 0

    def begin(self, conversation: Conversation) -> None:
        """Let a conversation speak for the first time."""
        self._go_on(conversation, None)

    def run_until_one_ends(self) -> None:
        """Hand replies over until a conversation is over; raise what it raises."""
        while not self._ended:
            for conversation in self._awake():
                self._go_on(conversation, None)
            if self._ended:
                break
            with contextlib.suppress(queue.Empty):
                conversation, reply = self._replies.get(timeout=self._until_next_waking())
                self._sent.pop(conversation, None)
                self._go_on(conversation, reply)
        self._ended -= 1

    def close(self) -> None:
        """Cancel what is under way."""
        for context in self._sent.values():
            context.cancel()
        for conversation in [*self._sent, *(conversation for *_, conversation in self._waiting)]:
            conversation.close()

    def _awake(self) -> Iterator[Conversation]:
        while self._waiting and self._waiting[0][0] <= time.monotonic():
            yield heapq.heappop(self._waiting)[2]

    def _until_next_waking(self) -> float | None:
        return max(0.0, self._waiting[0][0] - time.monotonic()) if self._waiting else None

    def _go_on(self, conversation: Conversation, reply: Reply) -> None:
        try:
            while True:
                action = _tell(conversation, reply)
                if not isinstance(action, Manage):
                    self._begin_action(action, conversation)
                    return
                reply = self._manage(action)
        except StopIteration:
            self._ended += 1

    def _begin_action(self, action: Send | Wait, conversation: Conversation) -> None:
        if isinstance(action, Wait):
            moment = time.monotonic() + action.seconds
            heapq.heappush(self._waiting, (moment, next(self._ticket), conversation))
            return
        self._sent[conversation] = self._connection.async_infer(
            **action.arguments,
            headers=self._headers,
            callback=lambda result, error: self._replies.put((conversation, error or result)),
        )

    def _manage(self, action: Manage) -> Reply:
        try:
            getattr(self._connection, action.method)(
                **action.arguments, headers=self._headers, client_timeout=MANAGE_SECONDS
            )
        except InferenceServerException as error:
            return error
        return None


def _tell(conversation: Conversation, reply: Reply) -> Action:
    """Hand a reply over; return the next action."""
    if isinstance(reply, InferenceServerException):
        return conversation.throw(reply)
    return conversation.send(reply)
