"""align_mask on Triton's Python backend: converts requests to tensors and results to responses.

Requests of one dynamic batch are grouped by type and size of their frames. `align_mask.pipeline` computes
each group in one pass. A request with an invalid face is rejected with INVALID_ARGUMENT; the other requests
are answered. If a group's pass raises, each of its requests is computed again alone, and only a request that
raises again fails.
"""

import dataclasses
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Triton appends this folder to sys.path; before it, another package could hide the package `align_mask`.
sys.path.insert(0, str(Path(__file__).resolve().parent))

# OpenMP reads this when torch is loaded: its idle threads must sleep, not spin. On two cores with one busy,
# spinning threads increased the latency of a face from 4 to 84 ms.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import triton_python_backend_utils as pb_utils
from torch.utils.dlpack import from_dlpack

from align_mask.face_checks import InvalidFaces, reason_of, request_size_error
from align_mask.hull_mask import HULL_ERRORS
from align_mask.metrics import Metrics, Tally
from align_mask.pipeline import FaceResults, process
from align_mask.settings import Settings
from align_mask.stage_clock import StageClock
from align_mask.warp import has_reference_bits

MAX_NAMED_FACES = 8
"""Number of invalid faces that the message of a rejected request names."""

COMPUTE_ERRORS: tuple[type[Exception], ...] = (
    RuntimeError,
    MemoryError,
    ArithmeticError,
    LookupError,
    ValueError,
    *HULL_ERRORS,
)
"""Exceptions of torch, NumPy, SciPy and OpenCV that a request's data may cause; also torch's CUDA errors.

Other exceptions (TypeError, ImportError, ...) do not depend on a request's data and fail the batch at once.
"""

MAX_JOINED_PIXELS = 2**24
"""Requests are computed in one pass only up to this many pixels: eight frames of 1920x1080, or the crops of
a whole batch. A larger request is computed alone.

One pass saves a fixed cost of a few milliseconds per request, but copies the frames. Copying 128 frames of
1920x1080 takes a second in which the heartbeat shows no progress.
"""

FRAME_INPUTS = ("FRAMES", "FRAMES_UINT8")
"""A request has exactly one: float32 in [0, 1], or uint8 from 0 to 255."""


class InputError(ValueError):
    """The tensors of a request are missing or too large; the message says how to correct them."""


@dataclasses.dataclass(frozen=True)
class FaceRequest:
    """The tensors of one request.

    Attributes
    ----------
    position : int
        Index in the dynamic batch.
    frames : Tensor, shape (N, 3, H, W)
        On the device where Triton placed them.
    landmarks : Tensor, shape (N, 68, 2)
        On the CPU.
    outputs : frozenset of str
        Names of the requested outputs.
    """

    position: int
    frames: torch.Tensor
    landmarks: torch.Tensor
    outputs: frozenset[str]

    @property
    def pixels(self) -> int:
        """Pixels of all frames."""
        faces, _, height, width = self.frames.shape
        return faces * height * width


class TritonPythonModel:
    """The class that Triton's Python backend instantiates."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the configuration, select the instance's device, create its metrics."""
        config = json.loads(args["model_config"])
        self.settings = Settings.from_model_config(config)
        self.device = _instance_device(args["model_instance_kind"], args["model_instance_device_id"])
        self.metrics = Metrics(args["model_name"], args["model_instance_name"])
        torch.set_num_threads(self.settings.torch_threads)
        if self.device.type == "cpu":
            # The result is cached: the check takes 60 ms once, here instead of in the first request.
            has_reference_bits(self.settings.face_size)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer every request of a dynamic batch, each with its outputs or its own error."""
        with self.metrics.batch_in_progress():
            responses, tally = self._answer(requests)
        self.metrics.add(tally)
        return responses

    def is_ready(self) -> bool:
        """Return whether this instance can compute. Triton calls this only from release 26.04 on."""
        return not self.metrics.is_failing

    def finalize(self) -> None:
        """Flush the metrics."""
        self.metrics.close()

    def _answer(self, requests: list[Any]) -> tuple[list[Any], Tally]:
        """Return a response for each request, and the counts of the batch.

        Raises
        ------
        Exception
            One of `COMPUTE_ERRORS`, if every request failed with an error other than out of memory. Triton
            then fails the batch and counts its requests as failed.
        """
        clock = StageClock(self.metrics.progress)
        responses: list[Any] = [None] * len(requests)
        errors: list[Exception] = []
        tally = Tally()
        groups = self._groups(requests, responses, clock)
        for group in groups:
            errors += self._answer_group(group, responses, tally, clock)
        compute_errors = [error for error in errors if not _is_out_of_memory(error)]
        # Raise only if no request has a response: raising would discard other responses and rejections.
        if len(compute_errors) == len(requests):
            raise compute_errors[0]
        faces = sum(len(request.frames) for group in groups for request in group)
        if faces:
            tally.batch_faces.append(faces)
        tally.rejected_requests = sum(response.has_error() for response in responses) - len(errors)
        tally.seconds.update(clock.seconds)
        return responses, tally

    def _groups(
        self, requests: list[Any], responses: list[Any], clock: StageClock
    ) -> list[list[FaceRequest]]:
        """Group requests that can share a pass; reject requests with wrong tensors in `responses`."""
        groups: list[list[FaceRequest]] = []
        open_groups: dict[tuple[torch.dtype, torch.Size], list[FaceRequest]] = {}
        pixels: Counter[tuple[torch.dtype, torch.Size]] = Counter()
        for position, request in enumerate(requests):
            try:
                with clock.stage("io"):
                    parsed = self._parse(position, request)
            except InputError as error:
                responses[position] = _rejection(str(error))
                continue
            frame_format = parsed.frames.dtype, parsed.frames.shape[1:]
            pixels[frame_format] += parsed.pixels
            if frame_format not in open_groups or pixels[frame_format] > MAX_JOINED_PIXELS:
                pixels[frame_format] = parsed.pixels
                open_groups[frame_format] = []
                groups.append(open_groups[frame_format])
            open_groups[frame_format].append(parsed)
        return groups

    def _answer_group(
        self, group: list[FaceRequest], responses: list[Any], tally: Tally, clock: StageClock
    ) -> list[Exception]:
        """Answer requests in one pass, or each alone if that raises; return the errors of failed requests."""
        try:
            results = self._compute(group, clock)
            group_responses = list(self._responses(group, results, clock))
        except COMPUTE_ERRORS as error:
            if len(group) == 1:
                responses[group[0].position] = _failure(error)
                # The traceback references this pass's tensors; other requests need their memory.
                return [error.with_traceback(None) if _is_out_of_memory(error) else error]
        else:
            tally.invalid_faces.update(reason_of(message) for message in results.invalid.values())
            for request, response in zip(group, group_responses, strict=True):
                responses[request.position] = response
                tally.successful_faces += 0 if response.has_error() else len(request.frames)
            return []
        alone = [self._answer_group([request], responses, tally, clock) for request in group]
        return [error for errors in alone for error in errors]

    def _compute(self, group: list[FaceRequest], clock: StageClock) -> FaceResults:
        with clock.stage("io"):
            frames = _concatenate([request.frames.to(self.device) for request in group])
            landmarks = _concatenate([request.landmarks for request in group])
        outputs = frozenset[str]().union(*(request.outputs for request in group))
        return process(frames, landmarks, outputs, self.settings, clock)

    def _parse(self, position: int, request: Any) -> FaceRequest:
        frames = _frames(request)
        faces, _, height, width = frames.shape
        size_error = request_size_error(faces, height, width, self.settings.max_request_pixels)
        if size_error:
            raise InputError(size_error)
        return FaceRequest(
            position=position,
            frames=frames,
            landmarks=_landmarks(request).cpu(),
            outputs=frozenset(request.requested_output_names()),
        )

    def _responses(self, group: list[FaceRequest], results: FaceResults, clock: StageClock) -> Iterator[Any]:
        """Split the results of a group into the responses of its requests."""
        first = 0
        for request in group:
            with clock.stage("io"):
                yield self._response(request, results, first)
            first += len(request.frames)

    def _response(self, request: FaceRequest, results: FaceResults, first: int) -> Any:
        """Return the response of a request whose faces start at row `first` of its group's results."""
        stop = first + len(request.frames)
        invalid = {face - first: message for face, message in results.invalid.items() if first <= face < stop}
        if invalid:
            return _rejection(_list_invalid_faces(invalid))
        return pb_utils.InferenceResponse(
            [self._output(name, results.outputs[name][first:stop]) for name in sorted(request.outputs)]
        )

    def _output(self, name: str, values: torch.Tensor) -> Any:
        if name == "MASKED_FACES" and self.settings.masked_faces_on_device:
            return _device_tensor(name, values)
        # Even a GPU instance returns all other outputs in host memory: when Triton's CUDA memory pool was
        # full, outputs in GPU memory were empty, with status OK.
        return pb_utils.Tensor(name, values.cpu().numpy())


def _instance_device(kind: str, device_id: str) -> torch.device:
    """Return the device that Triton assigned to this instance, or the CPU if torch cannot use CUDA."""
    if kind != "GPU":
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device(f"cuda:{device_id}")
    pb_utils.Logger.log_warn(
        f"align_mask: Triton found GPU {device_id}, but torch {torch.__version__} cannot use it: "
        "the warp runs on the CPU. Install a CUDA build of torch."
    )
    return torch.device("cpu")


def _frames(request: Any) -> torch.Tensor:
    tensors = [pb_utils.get_input_tensor_by_name(request, name) for name in FRAME_INPUTS]
    frames = [tensor for tensor in tensors if tensor is not None]
    if len(frames) != 1:
        raise InputError(
            f"{'both' if frames else 'neither'} of FRAMES and FRAMES_UINT8 given: send FRAMES, FP32 in "
            "[0, 1], or FRAMES_UINT8, UINT8 from 0 to 255"
        )
    return _as_torch(frames[0])


def _landmarks(request: Any) -> torch.Tensor:
    """Return LANDMARKS. Triton checks only the number of inputs, because other inputs are optional."""
    landmarks = pb_utils.get_input_tensor_by_name(request, "LANDMARKS")
    if landmarks is None:
        raise InputError("no LANDMARKS given: send FP32 [N, 68, 2] in pixels of the frames")
    return _as_torch(landmarks)


def _as_torch(tensor: Any) -> torch.Tensor:
    """Convert a Triton tensor in host or GPU memory without a copy."""
    return torch.from_numpy(tensor.as_numpy()) if tensor.is_cpu() else from_dlpack(tensor)


def _concatenate(tensors: list[torch.Tensor]) -> torch.Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def _device_tensor(name: str, values: torch.Tensor) -> Any:
    """Return an output tensor without a copy to host memory. Untested so far; `make gpu-check` tests it."""
    if values.is_cuda:
        torch.cuda.current_stream(values.device).synchronize()
    return pb_utils.Tensor.from_dlpack(name, values)


def _rejection(message: str) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG))


def _failure(error: Exception) -> Any:
    """Return the response to a request whose computation raised, and log the exception."""
    message = str(error)
    if _is_out_of_memory(error):
        message = f"align_mask is out of memory, send fewer or smaller frames: {error}"
    pb_utils.Logger.log_error(f"align_mask: a request failed: {type(error).__name__}: {error}")
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message))


def _is_out_of_memory(error: Exception) -> bool:
    """Return whether an allocation failed. On the CPU, torch raises a RuntimeError with this text."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _list_invalid_faces(invalid: InvalidFaces) -> str:
    """Return one message for all invalid faces of a request."""
    messages = [f"face {face}: {invalid[face]}" for face in sorted(invalid)[:MAX_NAMED_FACES]]
    if len(invalid) > MAX_NAMED_FACES:
        messages.append(f"and {len(invalid) - MAX_NAMED_FACES} more")
    return "; ".join(messages)
