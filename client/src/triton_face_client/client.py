"""The blocking client: arrays in, arrays out, over gRPC."""

import contextlib
import functools
import threading
import time
import weakref
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from triton_face_client.base_client import BaseClient
from triton_face_client.errors import ServiceUnavailableError
from triton_face_client.requests.answers import Answers
from triton_face_client.requests.calls import Call, CallWindow
from triton_face_client.requests.model_config import Model, features_model
from triton_face_client.requests.request import CLOSE_WAIT_SECONDS, CallOptions, Send, release_regions
from triton_face_client.requests.scheduler import Scheduler
from triton_face_client.transports.base import Callback, ManageRegion
from triton_face_client.transports.io_thread import IoThread, call_in_thread, run_in_thread

_CONNECTION_LOCK = threading.Lock()


class FaceFeatureClient(BaseClient):
    """A connection to the service. Use it as a context manager, or `close` it.

    A call accepts any number of faces. The client splits them into requests, sends several concurrently, and
    returns the results in the order of the faces. Threads may share a client. `BaseClient` describes the
    parameters.

    Every call raises

    - `InvalidFacesError` if the service rejects faces; the message names faces and reasons;
    - `ServiceUnavailableError` if the server is unreachable or overloaded. The client retries inference
      requests first (`retry`). It does not retry the request for a model's configuration, which the first
      call sends, so that a wrong address fails at once;
    - `DeadlineError` if a request exceeds `timeout`, or the call its deadline;
    - `FaceServiceError` if the server fails. It is the base class of these errors and a subclass of
      `tritonclient.utils.InferenceServerException`;
    - `ValueError` if an array has another shape or type than documented.

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
        """The `InferenceServerClient` of `tritonclient.grpc` for the same endpoint."""
        # From Python 3.12 on, several threads may run the function of a cached_property.
        with _CONNECTION_LOCK:
            if "connection" not in self.__dict__:
                self.__dict__["connection"] = InferenceServerClient(**self._channel_arguments)
            return self.__dict__["connection"]

    @functools.cached_property
    def _io_thread(self) -> IoThread:
        thread = IoThread()
        # End the thread of a client that is garbage-collected and was never closed.
        weakref.finalize(self, thread.stop)
        return thread

    def close(self) -> None:
        """Release the client's shared memory and close the connection."""
        if self._is_closed:
            return
        self._is_closed = True
        with contextlib.closing(Scheduler(self._perform)) as scheduler:
            scheduler.start(release_regions(self._transport))
            scheduler.run_until_one_completes()
        self._io_thread.drain(CLOSE_WAIT_SECONDS)
        call_in_thread(self.connection.close)
        self._io_thread.stop()

    def features(
        self,
        frames: Any,
        landmarks: Any,
        outputs: Sequence[str] = ("HOG", "POSE"),
        *,
        on_invalid: str = "raise",
        deadline: float | None = None,
    ) -> Answers:
        """Compute HOG features, action units and head pose.

        Parameters
        ----------
        frames : array or torch tensor, shape (N, 3, H, W), or sequence of N of shape (3, H, W)
            One RGB face crop or whole frame per face. Floating frames are in [0, 1] and are sent as float32.
            uint8 frames are from 0 to 255 and a quarter as large; the server divides them by 255 in float32.
            The frames of a sequence may differ in size and type. If POSE is the only output, frames are
            ignored and may be None.
        landmarks : array or torch tensor, shape (N, 68, 2)
            iBUG/OpenFace landmarks (x, y) in pixels of `frames`.
        outputs : sequence of str
            Any of the outputs listed under Returns. Only the requested outputs are computed, except POSE,
            which every request with frames computes.
        on_invalid : {"raise", "nan"}
            "raise" raises `InvalidFacesError` for invalid faces. "nan" computes all other faces; the rows of
            invalid faces are NaN (False in MASK, the smallest int64 in ALIGNED_LANDMARKS), and
            `Answers.refused` has the reasons.
        deadline : float, optional
            Seconds after which the call fails.

        Returns
        -------
        Answers
            The requested outputs, as torch tensors if `frames` are torch tensors.

            - HOG float32 ``[N, 5408]`` (default settings), in the order of `skimage.feature.hog`;
            - AU float32 ``[N, K]``, the action units of `action_unit_names`. Only a server with an AU
              checkpoint computes AU (see `action_units`);
            - POSE float32 ``[N, 6]``, raw Pitch, Roll, Yaw in radians, then X, Y, Z (see `subject_pose`);
            - ALIGNED_LANDMARKS int64 ``[N, 68, 2]``, (x, y) in pixels of the aligned face;
            - AFFINE float32 ``[N, 2, 3]``, map from pixels of the frame to pixels of the aligned face;
            - MASK bool ``[N, 112, 112]``, the hull mask: True inside the landmarks' convex hull and the
              box above the jaw ends, for the forehead.
        """
        if tuple(outputs) == ("POSE",):
            pose, refused = self._pose("ensemble", landmarks, on_invalid, deadline)
            return Answers({"POSE": pose}, refused)
        options = self._call_options(on_invalid, deadline)
        model = self.model(features_model(outputs), options.seconds_left)
        return self._run_call(self._face_call(model, frames, landmarks, outputs), options)

    def action_units(
        self, frames: Any, landmarks: Any, *, on_invalid: str = "raise", deadline: float | None = None
    ) -> Any:
        """Compute action units (AUs) with the classifiers of the server's AU checkpoint.

        `features` with the output AU also returns the reasons of invalid faces, and other outputs of the same
        request.

        Parameters
        ----------
        frames, landmarks, on_invalid, deadline
            As in `features`.

        Returns
        -------
        ndarray or torch tensor of float32, shape (N, K)
            One column for each of `action_unit_names`. The values are probabilities from 0 to 1, not
            intensities; some classifiers return only 0 and 1.

        Raises
        ------
        ServiceUnavailableError
            If the server computes no action units; the status is ``"StatusCode.NOT_FOUND"``.
        """
        return self.features(frames, landmarks, ["AU"], on_invalid=on_invalid, deadline=deadline)["AU"]

    def action_unit_names(self) -> tuple[str, ...]:
        """Return the names of the action units that the server computes, in the order of AU's columns.

        Returns
        -------
        tuple of str
            py-feat's names, for example ``("AU01", "AU02", "AU04")``.

        Raises
        ------
        ServiceUnavailableError
            If the server computes no action units; the status is ``"StatusCode.NOT_FOUND"``.
        """
        return self.model("action_units").action_units

    def align(
        self,
        frames: Any,
        landmarks: Any,
        outputs: Sequence[str] = ("MASKED_FACES", "ALIGNED_LANDMARKS"),
        *,
        on_invalid: str = "raise",
        deadline: float | None = None,
    ) -> Answers:
        """Align and mask faces. The parameters are those of `features`.

        Returns
        -------
        Answers
            The requested outputs:

            - ALIGNED_FACES float32 ``[N, 3, 112, 112]``, with the fill value 128 outside the frame;
            - MASKED_FACES float32 ``[N, 3, 112, 112]``, aligned faces with 0 outside the hull mask;
            - ALIGNED_LANDMARKS, AFFINE and MASK as in `features`.
        """
        options = self._call_options(on_invalid, deadline)
        call = self._face_call(self.model("align_mask", options.seconds_left), frames, landmarks, outputs)
        return self._run_call(call, options)

    def pose(self, landmarks: Any, *, on_invalid: str = "raise", deadline: float | None = None) -> Any:
        """Compute raw head pose from landmarks only.

        Parameters
        ----------
        landmarks : array or torch tensor, shape (N, 68, 2)
            (x, y), y down, in pixels of an image that has not been stretched.
        on_invalid, deadline
            As in `features`. A face is invalid if a landmark is not finite or the outer eye corners coincide.

        Returns
        -------
        ndarray or torch tensor of float32, shape (N, 6)
            POSE as in `features`.
        """
        return self._pose("pose_mlp", landmarks, on_invalid, deadline)[0]

    def stream(
        self,
        chunks: Iterable[tuple[Any, Any]],
        outputs: Sequence[str] = ("HOG", "POSE"),
        *,
        on_invalid: str = "raise",
    ) -> Generator[Answers, None, None]:
        """Compute features of any number of chunks of faces, in order and in bounded memory.

        Parameters
        ----------
        chunks : iterable of (frames, landmarks)
            Frames and landmarks as in `features`. The client reads at most ``2 * in_flight`` chunks ahead.
        outputs, on_invalid
            As in `features`.

        Yields
        ------
        Answers
            The answers to one chunk.
        """
        model, options = self.model(features_model(outputs)), self._call_options(on_invalid, None)
        yield from self._run_calls((self._face_call(model, *chunk, outputs) for chunk in chunks), options)

    def model(self, name: str, seconds: float | None = None) -> Model:
        """Return a model's configuration. The first call requests it from the server.

        Parameters
        ----------
        name : str
            Name of the model.
        seconds : float, optional
            Time limit of that request, at most `timeout` (the default).
        """
        self._check_open()
        if name not in self._models:
            try:
                arguments = self._control_arguments(seconds)
                response = call_in_thread(lambda: self.connection.get_model_config(name, **arguments))
            except InferenceServerException as error:
                raise self.config_error(error, name) from None
            self._models[name] = Model.from_config(response.config, self.batch_size)
        return self._models[name]

    def wait_until_ready(self, seconds: float) -> None:
        """Wait until the server and its models are ready.

        Raises
        ------
        ServiceUnavailableError
            If the server or a model is not ready after `seconds`.
        """
        end = time.monotonic() + seconds
        while (seconds_left := end - time.monotonic()) > 0:
            with contextlib.suppress(InferenceServerException):
                arguments = self._control_arguments(seconds_left)
                if call_in_thread(functools.partial(self.connection.is_server_ready, **arguments)):
                    return
            time.sleep(min(0.1, seconds_left))
        raise ServiceUnavailableError(f"{self.target} was not ready after {seconds:g} s")

    def _aligned_action_units(self, hog: Any, landmarks: Any) -> NDArray[np.float32]:
        """Compute action units of HOG features and aligned landmarks (`validate_aligned_faces`)."""
        options = self._call_options("raise", None)
        model = self.model("au", options.seconds_left)
        answers = self._run_call(self._aligned_call(model, hog, landmarks), options)
        action_units: NDArray[np.float32] = answers["AU"]
        return action_units

    def _pose(
        self, model: str, landmarks: Any, on_invalid: str, deadline: float | None
    ) -> tuple[Any, Mapping[int, str]]:
        options = self._call_options(on_invalid, deadline)
        call = self._pose_call(self.model(model, options.seconds_left), landmarks, options)
        answers = self._run_call(call, options)
        return answers["POSE"], answers.refused

    def _run_call(self, call: Call, options: CallOptions) -> Answers:
        with contextlib.closing(self._run_calls(iter([call]), options)) as answers:
            return next(answers)

    def _run_calls(self, calls: Iterator[Call], options: CallOptions) -> Generator[Answers, None, None]:
        window = CallWindow(self.in_flight)
        with contextlib.closing(Scheduler(self._perform)) as scheduler:
            while True:
                while window.has_room and (call := next(calls, None)) is not None:
                    window.add(call)
                    self._start_requests(window, options, scheduler)
                # Also without a new call: a completed request has made room.
                self._start_requests(window, options, scheduler)
                complete = list(window.pop_complete())
                yield from complete
                if window.is_empty and not complete:
                    return
                if not complete:
                    scheduler.run_until_one_completes()
                    window.on_request_complete()

    def _start_requests(self, window: CallWindow, options: CallOptions, scheduler: Scheduler) -> None:
        while (request := window.next_request(options, self._transport)) is not None:
            scheduler.start(request)

    def _perform(self, action: Send | ManageRegion, callback: Callback) -> None:
        arguments = action.arguments | {"headers": self.headers}
        if isinstance(action, ManageRegion):
            method = getattr(self.connection, action.method)
            run_in_thread(lambda: method(**arguments), callback)
        else:
            self._io_thread.submit(
                lambda on_response: self.connection.async_infer(**arguments, callback=on_response), callback
            )
