"""Blocking calls of the service over gRPC, from arrays to arrays."""

import contextlib
import functools
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from triton_face_client.base_client import Settings
from triton_face_client.errors import ServiceUnavailableError
from triton_face_client.requests.answers import Answers, Call, Window
from triton_face_client.requests.model_config import Model
from triton_face_client.requests.request import Policy, take_leave
from triton_face_client.requests.scheduler import Turns, Worker


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

    @functools.cached_property
    def _worker(self) -> Worker:
        worker = Worker()
        # For a client that is dropped without being closed.
        weakref.finalize(self, worker.stop)
        return worker

    def close(self) -> None:
        """Close the connection and give its shared memory back."""
        with contextlib.closing(self._turns()) as turns:
            turns.begin(take_leave(self._transport))
            turns.run_until_one_ends()
        self._worker.linger()
        self._worker.ask(self.connection.close)
        self._worker.stop()

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
        call = self._face_call(self.model("ensemble", policy.seconds_left), frames, landmarks, outputs)
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
        call = self._face_call(self.model("align_mask", policy.seconds_left), frames, landmarks, outputs)
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

    def model(self, name: str, seconds: float | None = None) -> Model:
        """Return what a model takes and gives, as the server's configuration has it.

        Parameters
        ----------
        name : str
            The model.
        seconds : float, optional
            How long the server may take to tell; by default `timeout`. It is asked once.
        """
        if name not in self._models:
            try:
                reply = self._worker.ask(lambda: self.connection.get_model_config(name, **self._ask(seconds)))
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
        while (left := end - time.monotonic()) > 0:
            with contextlib.suppress(InferenceServerException):
                if self._worker.ask(functools.partial(self.connection.is_server_ready, **self._ask(left))):
                    return
            time.sleep(min(0.1, left))
        raise ServiceUnavailableError(f"{self.target} was not ready after {seconds:g} s")

    def _pose(
        self, model: str, landmarks: Any, on_invalid: str, deadline: float | None
    ) -> tuple[Any, Mapping[int, str]]:
        policy = self._policy(on_invalid, deadline)
        call = self._pose_call(self.model(model, policy.seconds_left), landmarks, policy)
        answers = self._answer(call, policy)
        return answers["POSE"], answers.refused

    def _answer(self, call: Call, policy: Policy) -> Answers:
        with contextlib.closing(self._answers(iter([call]), policy)) as answers:
            return next(answers)

    def _answers(self, calls: Iterator[Call], policy: Policy) -> Iterator[Answers]:
        window = Window(self.in_flight)
        with contextlib.closing(self._turns()) as turns:
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

    def _turns(self) -> Turns:
        return Turns(self._worker, self.connection, self.headers)

    def _begin_all(self, window: Window, policy: Policy, turns: Turns) -> None:
        while (conversation := window.next_conversation(policy, self._transport)) is not None:
            turns.begin(conversation)
