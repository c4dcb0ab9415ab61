"""The calls of `FaceFeatureClient` for asyncio."""

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from typing import Any

from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from triton_face_client.base_client import Settings
from triton_face_client.errors import ServiceUnavailableError
from triton_face_client.requests.answers import Answers, Call, Window
from triton_face_client.requests.model_config import Model
from triton_face_client.requests.request import (
    LINGER_SECONDS,
    Action,
    Conversation,
    Policy,
    Wait,
    take_leave,
)
from triton_face_client.transports.messages import Manage


class AsyncFaceFeatureClient(Settings):
    """A connection to the service for asyncio, with the calls of `FaceFeatureClient`.

    Cancelling a call ends it at once; the few requests under way are left to the server. The client belongs
    to the event loop in which it is first used; it is not for several threads. Its parameters are those of
    `Settings`, its errors those of `FaceFeatureClient`.

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
    def _sent(self) -> set["asyncio.Task[Any]"]:
        return set()

    @functools.cached_property
    def connection(self) -> InferenceServerClient:
        """Return tritonclient's client of the same endpoint; it belongs to the loop that asks first."""
        return InferenceServerClient(**self._channel_arguments)

    async def close(self) -> None:
        """Close the connection and give its shared memory back."""
        await self._hold(take_leave(self._transport))
        if self._sent:
            await asyncio.wait(self._sent, timeout=LINGER_SECONDS)
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
        """Compute AU features and head pose, as `FaceFeatureClient.features` does."""
        if tuple(outputs) == ("POSE",):
            pose, refused = await self._pose("ensemble", landmarks, on_invalid, deadline)
            return Answers({"POSE": pose}, refused)
        policy = self._policy(on_invalid, deadline)
        call = self._face_call(await self.model("ensemble", policy.seconds_left), frames, landmarks, outputs)
        return await self._answer(call, policy)

    async def align(
        self,
        frames: Any,
        landmarks: Any,
        outputs: Sequence[str] = ("MASKED_FACES", "ALIGNED_LANDMARKS"),
        *,
        on_invalid: str = "raise",
        deadline: float | None = None,
    ) -> Answers:
        """Align and mask faces, as `FaceFeatureClient.align` does."""
        policy = self._policy(on_invalid, deadline)
        call = self._face_call(
            await self.model("align_mask", policy.seconds_left), frames, landmarks, outputs
        )
        return await self._answer(call, policy)

    async def pose(self, landmarks: Any, *, on_invalid: str = "raise", deadline: float | None = None) -> Any:
        """Compute raw head pose from landmarks alone, as `FaceFeatureClient.pose` does."""
        return (await self._pose("pose_mlp", landmarks, on_invalid, deadline))[0]

    async def stream(
        self,
        chunks: AsyncIterable[tuple[Any, Any]],
        outputs: Sequence[str] = ("HOG", "POSE"),
        *,
        on_invalid: str = "raise",
    ) -> AsyncIterator[Answers]:
        """Answer an endless sequence of chunks of faces, as `FaceFeatureClient.stream` does."""
        model, policy = await self.model("ensemble"), self._policy(on_invalid, None)
        calls = (self._face_call(model, *chunk, outputs) async for chunk in chunks)
        async for answers in self._answers(calls, policy):
            yield answers

    async def model(self, name: str, seconds: float | None = None) -> Model:
        """Return what a model takes and gives, as `FaceFeatureClient.model` does."""
        if name not in self._models:
            try:
                reply = await self.connection.get_model_config(name, **self._ask(seconds))
            except InferenceServerException as error:
                raise self.first_contact_error(error, name) from None
            self._models[name] = Model.from_config(reply.config, self.batch_size)
        return self._models[name]

    async def wait_until_ready(self, seconds: float) -> None:
        """Wait until the server and its models are ready, as `FaceFeatureClient.wait_until_ready` does."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            with contextlib.suppress(InferenceServerException):
                if await self.connection.is_server_ready(**self._ask(left)):
                    return
            await asyncio.sleep(min(0.1, left))
        raise ServiceUnavailableError(f"{self.target} was not ready after {seconds:g} s")

    async def _pose(
        self, model: str, landmarks: Any, on_invalid: str, deadline: float | None
    ) -> tuple[Any, Mapping[int, str]]:
        policy = self._policy(on_invalid, deadline)
        answers = await self._answer(
            self._pose_call(await self.model(model, policy.seconds_left), landmarks, policy), policy
        )
        return answers["POSE"], answers.refused

    async def _answer(self, call: Call, policy: Policy) -> Answers:
        async with contextlib.aclosing(self._answers(_only(call), policy)) as answers:
            return await anext(answers)

    async def _answers(self, calls: AsyncIterator[Call], policy: Policy) -> AsyncIterator[Answers]:
        window = Window(self.in_flight)
        running: set[asyncio.Task[None]] = set()
        try:
            while True:
                while window.wants_call and (call := await anext(calls, None)) is not None:
                    window.add(call)
                    self._begin_all(window, policy, running)
                self._begin_all(window, policy, running)
                complete = list(window.complete())
                for answers in complete:
                    yield answers
                if window.is_empty and not complete:
                    return
                if not complete:
                    done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        task.result()
                        window.has_ended()
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    def _begin_all(self, window: Window, policy: Policy, running: set[asyncio.Task[None]]) -> None:
        while (conversation := window.next_conversation(policy, self._transport)) is not None:
            running.add(asyncio.create_task(self._hold(conversation)))

    async def _hold(self, conversation: Conversation) -> None:
        with contextlib.closing(conversation), contextlib.suppress(StopIteration):
            action = next(conversation)
            while True:
                try:
                    reply = await self._act(action)
                except InferenceServerException as error:
                    action = conversation.throw(error)
                else:
                    action = conversation.send(reply)

    async def _act(self, action: Action) -> Any:
        if isinstance(action, Wait):
            return await asyncio.sleep(action.seconds)
        if isinstance(action, Manage):
            manage = getattr(self.connection, action.method)
            return await manage(**action.arguments, headers=self.headers, client_timeout=action.seconds)
        sent = asyncio.create_task(self.connection.infer(**action.arguments, headers=self.headers))
        self._sent.add(sent)
        sent.add_done_callback(self._has_ended)
        # Cancelling the call ends the wait, not the request (`LINGER_SECONDS`).
        return await asyncio.shield(sent)

    def _has_ended(self, sent: "asyncio.Task[Any]") -> None:
        self._sent.discard(sent)
        if not sent.cancelled():
            sent.exception()  # looked at, so that asyncio does not complain where nobody waits any more


async def _only(call: Call) -> AsyncIterator[Call]:
    yield call
