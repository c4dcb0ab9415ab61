"""align_mask on Triton's Python backend: requests in, plain tensors through `face_pipeline`, responses out.

Requests of one dynamic batch are grouped by the type and size of their frames, and each group is computed in
one pass. A request with a faulty face is refused alone, as INVALID_ARGUMENT, and its neighbours are answered.
When the pass over a group raises, each of its requests is computed alone, so that only the guilty fail.
"""

import dataclasses
import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

# Triton puts this folder behind all packages; one of them has a module `warp` too.
sys.path.insert(0, str(Path(__file__).resolve().parent))

# Read when torch is loaded: its idle threads must sleep, not spin. With one core of two busy elsewhere, as
# on any shared machine, spinning made a face take 84 ms instead of 4.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import triton_python_backend_utils as pb_utils

from align_mask.face_checks import Faults, reason, request_fault
from align_mask.metrics import Metrics, Tally
from align_mask.pipeline import Faces, process
from align_mask.settings import Settings
from align_mask.stage_clock import StageClock
from align_mask.warp import has_reference_bits

MOST_NAMED_FACES = 8
"""How many faulty faces of a request its error spells out."""


COMPUTE_ERRORS = (RuntimeError, MemoryError, ArithmeticError, LookupError, ValueError)
"""What torch, NumPy and SciPy raise for the data they compute with; RuntimeError is torch's, also for CUDA.

Anything else (TypeError, ImportError, ...) does not depend on a request's data and fails the batch at once.
"""

JOINED_PIXELS = 2**24
"""Most pixels of requests that are computed in one pass: eight frames of 1920x1080, all crops of a batch.

Joining copies the frames. It saves a pass's fixed cost, a few milliseconds; the copy of 128 such frames takes
a second, in which the heartbeat stands still.
"""

FRAME_INPUTS = ("FRAMES", "FRAMES_UINT8")
"""A request has one of them: float32 in [0, 1] or uint8, 0 to 255."""


class InputError(ValueError):
    """A request lacks a tensor, has both kinds of frames or too many; the message says what to send."""


@dataclasses.dataclass(frozen=True)
class FaceRequest:
    """One request's tensors: frames ``[N, 3, H, W]`` where they came, landmarks ``[N, 68, 2]`` on the CPU."""

    position: int
    frames: torch.Tensor
    landmarks: torch.Tensor
    wanted: frozenset[str]
    masked_faces_on_device: bool

    @property
    def pixels(self) -> int:
        """Pixels of all its frames."""
        faces, _, height, width = self.frames.shape
        return faces * height * width


class TritonPythonModel:
    """The interface that the Python backend looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the config, pick the instance's device, make its metrics."""
        config = json.loads(args["model_config"])
        self.settings = Settings.from_model_config(config)
        self.device = _instance_device(args["model_instance_kind"], args["model_instance_device_id"])
        self.metrics = Metrics(args["model_name"], args["model_instance_name"])
        torch.set_num_threads(self.settings.torch_threads)
        if self.device.type == "cpu":
            has_reference_bits(self.settings.face_size)  # 60 ms, kept; the first request need not wait for it

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer every request of a dynamic batch, each with its outputs or its own error."""
        with self.metrics.batch_in_progress():
            responses, tally = self._answer(requests)
        self.metrics.add(tally)
        return responses

    def is_ready(self) -> bool:
        """Return whether this instance can compute; newer Triton versions ask, 2.51 does not."""
        return not self.metrics.is_failing

    def finalize(self) -> None:
        """Flush the metrics."""
        self.metrics.close()

    def _answer(self, requests: list[Any]) -> tuple[list[Any], Tally]:
        """Answer what can be computed.

        Raises
        ------
        Exception
            One of `COMPUTE_ERRORS`, when each request failed for another reason than a lack of memory. Triton
            then fails the batch and counts its requests as failed.
        """
        clock = StageClock(self.metrics.progress)
        responses: list[Any] = [None] * len(requests)
        errors: list[Exception] = []
        tally = Tally()
        groups = self._groups(requests, responses, clock)
        for group in groups:
            errors += self._answer_group(group, responses, tally, clock)
        broken = [error for error in errors if not _is_out_of_memory(error)]
        if len(broken) == len(requests):  # else a refused one would lose its reason
            raise broken[0]
        batch = sum(len(request.frames) for group in groups for request in group)
        tally.batches += [batch] * bool(batch)
        tally.refused_requests = sum(response.has_error() for response in responses) - len(errors)
        tally.seconds.update(clock.seconds)
        return responses, tally

    def _groups(
        self, requests: list[Any], responses: list[Any], clock: StageClock
    ) -> list[list[FaceRequest]]:
        """Group what can be computed in one pass; refuse what cannot be read, in `responses`."""
        groups: list[list[FaceRequest]] = []
        open_groups: dict[tuple[torch.dtype, torch.Size], list[FaceRequest]] = {}
        pixels: Counter[tuple[torch.dtype, torch.Size]] = Counter()
        for position, request in enumerate(requests):
            try:
                with clock.stage("tensors"):
                    parsed = self._parse(position, request)
            except InputError as error:
                responses[position] = _refused(str(error))
                continue
            kind = parsed.frames.dtype, parsed.frames.shape[1:]
            pixels[kind] += parsed.pixels
            if kind not in open_groups or pixels[kind] > JOINED_PIXELS:
                pixels[kind] = parsed.pixels
                open_groups[kind] = []
                groups.append(open_groups[kind])
            open_groups[kind].append(parsed)
        return groups

    def _answer_group(
        self, group: list[FaceRequest], responses: list[Any], tally: Tally, clock: StageClock
    ) -> list[Exception]:
        """Answer requests in one pass, or each alone if that raises; return the errors of those that fail."""
        try:
            faces = self._compute(group, clock)
            answers = _answers(group, faces, clock)
        except COMPUTE_ERRORS as error:
            if len(group) == 1:
                responses[group[0].position] = _failed(error)
                # The traceback keeps the tensors of this pass; other requests need their memory.
                return [error.with_traceback(None) if _is_out_of_memory(error) else error]
        else:
            tally.faults.update(reason(why) for why in faces.faults.values())
            for request, answer in zip(group, answers, strict=True):
                responses[request.position] = answer
                tally.answered += 0 if answer.has_error() else len(request.frames)
            return []
        alone = [self._answer_group([request], responses, tally, clock) for request in group]
        return [error for errors in alone for error in errors]

    def _compute(self, group: list[FaceRequest], clock: StageClock) -> Faces:
        with clock.stage("tensors"):
            frames = _joined([request.frames.to(self.device) for request in group])
            landmarks = _joined([request.landmarks for request in group])
        wanted = frozenset().union(*(request.wanted for request in group))
        return process(frames, landmarks, wanted, self.settings, clock)

    def _parse(self, position: int, request: Any) -> FaceRequest:
        frames = _frames(request)
        faces, _, height, width = frames.shape
        fault = request_fault(faces, height, width, self.settings.max_request_pixels)
        if fault:
            raise InputError(fault)
        return FaceRequest(
            position=position,
            frames=frames,
            landmarks=_landmarks(request).cpu(),
            wanted=frozenset(request.requested_output_names()),
            masked_faces_on_device=self.settings.masked_faces_on_device,
        )


def _instance_device(kind: str, device_id: str) -> torch.device:
    """Return the device Triton gave this instance, or the CPU where torch was built without CUDA."""
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
    given = [pb_utils.get_input_tensor_by_name(request, name) for name in FRAME_INPUTS]
    frames = [tensor for tensor in given if tensor is not None]
    if len(frames) != 1:
        raise InputError(
            f"{'both' if frames else 'neither'} of FRAMES and FRAMES_UINT8 given: send FRAMES, FP32 in "
            "[0, 1], or FRAMES_UINT8, UINT8 from 0 to 255"
        )
    return _tensor(frames[0])


def _landmarks(request: Any) -> torch.Tensor:
    """Take LANDMARKS. With optional inputs beside it, Triton counts inputs but does not miss this one."""
    landmarks = pb_utils.get_input_tensor_by_name(request, "LANDMARKS")
    if landmarks is None:
        raise InputError("no LANDMARKS given: send FP32 [N, 68, 2] in pixels of the frames")
    return _tensor(landmarks)


def _tensor(tensor: Any) -> torch.Tensor:
    """Take a tensor without copying it, from the CPU or the GPU; the tensor object itself speaks DLPack."""
    return torch.from_numpy(tensor.as_numpy()) if tensor.is_cpu() else torch.from_dlpack(tensor)


def _joined(tensors: list[torch.Tensor]) -> torch.Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def _answers(group: list[FaceRequest], faces: Faces, clock: StageClock) -> list[Any]:
    """Return the responses of a group that was computed together."""
    answers = []
    first = 0
    for request in group:
        with clock.stage("tensors"):
            answers.append(_response(request, faces, first))
        first += len(request.frames)
    return answers


def _response(request: FaceRequest, faces: Faces, first: int) -> Any:
    """Cut the rows of a request, which start at `first`, out of its group's result."""
    stop = first + len(request.frames)
    faults = {face - first: why for face, why in faces.faults.items() if first <= face < stop}
    if faults:
        return _refused(_reasons(faults))
    # On the CPU even from a GPU instance: a GPU output that finds Triton's CUDA pool full has come
    # back empty with status OK.
    return pb_utils.InferenceResponse(
        [
            _on_device(name, faces.outputs[name][first:stop])
            if name == "MASKED_FACES" and request.masked_faces_on_device
            else pb_utils.Tensor(name, faces.outputs[name][first:stop].cpu().numpy())
            for name in sorted(request.wanted)
        ]
    )


def _on_device(name: str, values: torch.Tensor) -> Any:
    """Return an output in the memory that holds it. Never run on a GPU; `make gpu-check` tries it there."""
    if values.is_cuda:
        torch.cuda.current_stream(values.device).synchronize()
    return pb_utils.Tensor.from_dlpack(name, values)


def _refused(message: str) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG))


def _failed(error: Exception) -> Any:
    """Answer a request that could not be computed, and log why."""
    short = _is_out_of_memory(error)
    message = f"align_mask is out of memory, send fewer or smaller frames: {error}" if short else str(error)
    pb_utils.Logger.log_error(f"align_mask: a request failed: {type(error).__name__}: {error}")
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message))


def _is_out_of_memory(error: Exception) -> bool:
    """Return whether an allocation failed; on the CPU torch raises a RuntimeError with this text."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _reasons(faults: Faults) -> str:
    """Name the faulty faces of a request by their index in it."""
    named = [f"face {face}: {faults[face]}" for face in sorted(faults)[:MOST_NAMED_FACES]]
    rest = len(faults) - len(named)
    return "; ".join(named + [f"and {rest} more"] * bool(rest))
