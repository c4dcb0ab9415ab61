"""The client for asyncio."""

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Mapping, Sequence
from typing import Any

from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from triton_face_client.base_client import BaseClient
from triton_face_client.errors import ServiceUnavailableError
from triton_face_client.requests.answers import Answers
from triton_face_client.requests.calls import Call, CallWindow
from triton_face_client.requests.model_config import Model, features_model
from triton_face_client.requests.request import (
    CLOSE_WAIT_SECONDS,
    Action,
    ActionGenerator,
    CallOptions,
    Wait,
    release_regions,
)
from triton_face_client.transports.base import ManageRegion


class AsyncFaceFeatureClient(BaseClient):
    """A connection to the service for asyncio, with the calls and errors of `FaceFeatureClient`.

    A cancelled call ends at once; the server still computes the requests that the call has sent. Use a client
    in one event loop and one thread only. `BaseClient` describes the parameters.

    Examples
    --------
    >>> async with AsyncFaceFeatureClient("127.0.0.1:8001") as client:
    ...     answers = await client.features(frames, landmarks, ["HOG", "POSE"])
    """

    async def __aenter__(self) -> "AsyncFaceFeatureClient":
        """Return the client itself."""
        return self

    async def __aexit__(self, *_exception: object) -> None:
        """Close the connection."""
        await self.close()

    @functools.cached_property
    def _inference_tasks(self) -> set["asyncio.Task[Any]"]:
        return set()

    @functools.cached_property
    def connection(self) -> InferenceServerClient:
        """The `InferenceServerClient` of `tritonclient.grpc.aio`, bound to the running event loop."""
        return InferenceServerClient(**self._channel_arguments)

    async def close(self) -> None:
        """Release the client's shared memory and close the connection."""
        if self._is_closed:
            return
        self._is_closed = True
        await self._run(release_regions(self._transport))
        if self._inference_tasks:
            await asyncio.wait(self._inference_tasks, timeout=CLOSE_WAIT_SECONDS)
        await self.connection.close()

    async def features(
        self,
        frames: Any,
        landmarks: Any,
        outputs: Sequence[str] = ("HOG", "POSE"),
        *,
        on_invalid: str = "raise",
        deadline: float | None = None,
    ) -> Answers:
        """Compute HOG features, action units and head pose; see `FaceFeatureClient.features`."""
        if tuple(outputs) == ("POSE",):
            pose, refused = await self._pose("ensemble", landmarks, on_invalid, deadline)
            return Answers({"POSE": pose}, refused)
        options = self._call_options(on_invalid, deadline)
        model = await self.model(features_model(outputs), options.seconds_left)
        return await self._run_call(self._face_call(model, frames, landmarks, outputs), options)

    async def action_units(
        self, frames: Any, landmarks: Any, *, on_invalid: str = "raise", deadline: float | None = None
    ) -> Any:
        """Compute action units; see `FaceFeatureClient.action_units`."""
        answers = await self.features(frames, landmarks, ["AU"], on_invalid=on_invalid, deadline=deadline)
        return answers["AU"]

    async def action_unit_names(self) -> tuple[str, ...]:
        """Return the names of the action units; see `FaceFeatureClient.action_unit_names`."""
        return (await self.model("action_units")).action_units

    async def align(
        self,
        frames: Any,
        landmarks: Any,
        outputs: Sequence[str] = ("MASKED_FACES", "ALIGNED_LANDMARKS"),
        *,
        on_invalid: str = "raise",
        deadline: float | None = None,
    ) -> Answers:
        """Align and mask faces; see `FaceFeatureClient.align`."""
        options = self._call_options(on_invalid, deadline)
        call = self._face_call(
            await self.model("align_mask", options.seconds_left), frames, landmarks, outputs
        )
        return await self._run_call(call, options)

    async def pose(self, landmarks: Any, *, on_invalid: str = "raise", deadline: float | None = None) -> Any:
        """Compute raw head pose from landmarks only; see `FaceFeatureClient.pose`."""
        return (await self._pose("pose_mlp", landmarks, on_invalid, deadline))[0]

    async def stream(
        self,
        chunks: AsyncIterable[tuple[Any, Any]],
        outputs: Sequence[str] = ("HOG", "POSE"),
        *,
        on_invalid: str = "raise",
    ) -> AsyncGenerator[Answers, None]:
        """Compute features of any number of chunks; see `FaceFeatureClient.stream`."""
        model, options = await self.model(features_model(outputs)), self._call_options(on_invalid, None)
        calls = (self._face_call(model, *chunk, outputs) async for chunk in chunks)
        async for answers in self._run_calls(calls, options):
            yield answers

    async def model(self, name: str, seconds: float | None = None) -> Model:
        """Return a model's configuration; see `FaceFeatureClient.model`."""
        self._check_open()
        if name not in self._models:
            try:
                response = await self.connection.get_model_config(name, **self._control_arguments(seconds))
            except InferenceServerException as error:
                raise self.config_error(error, name) from None
            self._models[name] = Model.from_config(response.config, self.batch_size)
        return self._models[name]

    async def wait_until_ready(self, seconds: float) -> None:
        """Wait until the server and its models are ready; see `FaceFeatureClient.wait_until_ready`."""
        end = time.monotonic() + seconds
        while (seconds_left := end - time.monotonic()) > 0:
            with contextlib.suppress(InferenceServerException):
                if await self.connection.is_server_ready(**self._control_arguments(seconds_left)):
                    return
            await asyncio.sleep(min(0.1, seconds_left))
        raise ServiceUnavailableError(f"{self.target} was not ready after {seconds:g} s")

    async def _pose(
        self, model: str, landmarks: Any, on_invalid: str, deadline: float | None
    ) -> tuple[Any, Mapping[int, str]]:
        options = self._call_options(on_invalid, deadline)
        call = self._pose_call(await self.model(model, options.seconds_left), landmarks, options)
        answers = await self._run_call(call, options)
        return answers["POSE"], answers.refused

    async def _run_call(self, call: Call, options: CallOptions) -> Answers:
        async with contextlib.aclosing(self._run_calls(_iterate_once(call), options)) as answers:
            return await anext(answers)

    async def _run_calls(
        self, calls: AsyncIterator[Call], options: CallOptions
    ) -> AsyncGenerator[Answers, None]:
        window = CallWindow(self.in_flight)
        running: set[asyncio.Task[None]] = set()
        try:
            while True:
                while window.has_room and (call := await anext(calls, None)) is not None:
                    window.add(call)
                    self._start_requests(window, options, running)
                self._start_requests(window, options, running)
                complete = list(window.pop_complete())
                for answers in complete:
                    yield answers
                if window.is_empty and not complete:
                    return
                if not complete:
                    done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        task.result()
                        window.on_request_complete()
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    def _start_requests(
        self, window: CallWindow, options: CallOptions, running: set[asyncio.Task[None]]
    ) -> None:
        while (request := window.next_request(options, self._transport)) is not None:
            running.add(asyncio.create_task(self._run(request)))

    async def _run(self, generator: ActionGenerator) -> None:
        with contextlib.closing(generator), contextlib.suppress(StopIteration):
            action = next(generator)
            while True:
                try:
                    result = await self._perform(action)
                except InferenceServerException as error:
                    action = generator.throw(error)
                else:
                    action = generator.send(result)

    async def _perform(self, action: Action) -> Any:
        if isinstance(action, Wait):
            return await asyncio.sleep(action.seconds)
        arguments = action.arguments | {"headers": self.headers}
        if isinstance(action, ManageRegion):
            return await getattr(self.connection, action.method)(**arguments)
        task = asyncio.create_task(self.connection.infer(**arguments))
        self._inference_tasks.add(task)
        task.add_done_callback(self._on_inference_done)
        # A cancelled call must not cancel the request (see `CLOSE_WAIT_SECONDS`).
        return await asyncio.shield(task)

    def _on_inference_done(self, task: "asyncio.Task[Any]") -> None:
        self._inference_tasks.discard(task)
        if not task.cancelled():
            # After a cancelled call nobody else retrieves the exception, and asyncio would log an error.
            task.exception()


async def _iterate_once(call: Call) -> AsyncIterator[Call]:
    yield call
