"""Hostile requests, drawn by hypothesis and sent without any client-side check.

A hostile request is a valid request with one or two defects, each of which makes it invalid. It is a plain
dataclass, so that hypothesis can simplify and print a request for which the test fails.
"""

import dataclasses
import http.client
import json
from collections.abc import Callable

import grpc
import numpy as np
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from tests.support.face_data import photo_faces

FACES = 2
CROP = (24, 20)
"""Height and width of the frames, pixels."""

RESPONSE_SECONDS = 30.0

OUTPUTS = {
    "ensemble": ("HOG", "POSE", "ALIGNED_LANDMARKS", "AFFINE", "MASK"),
    "align_mask": ("MASKED_FACES", "ALIGNED_FACES", "ALIGNED_LANDMARKS", "AFFINE", "MASK"),
    "hog": ("HOG",),
    "pose_mlp": ("POSE",),
}

DATATYPES = ("BOOL", "UINT8", "UINT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BYTES", "FP33", "", "fp32")


@dataclasses.dataclass
class Tensor:
    """The declaration of a tensor and its bytes, which may contradict the declaration."""

    name: str
    datatype: str
    shape: list[int]
    data: bytes


@dataclasses.dataclass
class HostileRequest:
    """A request and its defects.

    Attributes
    ----------
    model : str
        Name of the model.
    tensors : list of Tensor
        Inputs.
    outputs : list of str
        Names of the requested outputs.
    defects : list of str
        Description of each defect.
    """

    model: str
    tensors: list[Tensor]
    outputs: list[str]
    defects: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Response:
    """The gRPC or HTTP status of a response and its error message."""

    status: str
    reason: str


_FRAMES, _LANDMARKS = photo_faces(FACES, 600, CROP)


def valid_request(model: str, frames_type: str) -> HostileRequest:
    """Return a valid request, still without defects; `frames_type` is FP32 or UINT8."""
    values = {"LANDMARKS": _LANDMARKS}
    if model == "hog":
        values = {"MASKED_FACES": np.zeros((FACES, 3, 112, 112), np.float32)}
    elif model != "pose_mlp":
        is_float = frames_type == "FP32"
        values["FRAMES" if is_float else "FRAMES_UINT8"] = (
            _FRAMES if is_float else (255 * _FRAMES).astype(np.uint8)
        )
    return HostileRequest(
        model,
        [
            Tensor(name, "UINT8" if array.dtype == np.uint8 else "FP32", list(array.shape), array.tobytes())
            for name, array in values.items()
        ],
        list(OUTPUTS[model]),
    )


Draw = Callable[[st.SearchStrategy], object]
Defect = Callable[[Draw, HostileRequest], None]


def _any_tensor(draw: Draw, request: HostileRequest) -> Tensor:
    return draw(st.sampled_from(request.tensors))


def _drop(draw: Draw, request: HostileRequest) -> None:
    """Omit an input."""
    request.tensors.remove(_any_tensor(draw, request))


def _rename(draw: Draw, request: HostileRequest) -> None:
    """Give an input a name that the model does not have."""
    name = draw(st.text(max_size=40).filter(lambda text: text not in {"FRAMES", "FRAMES_UINT8", "LANDMARKS"}))
    _any_tensor(draw, request).name = f"X{name}"


def _add(draw: Draw, request: HostileRequest) -> None:
    """Send an additional input."""
    request.tensors.append(Tensor(f"Y{draw(st.text(max_size=10))}", "FP32", [FACES, 1], bytes(4 * FACES)))


def _retype(draw: Draw, request: HostileRequest) -> None:
    """Declare another datatype."""
    tensor = _any_tensor(draw, request)
    tensor.datatype = draw(st.sampled_from([kind for kind in DATATYPES if kind != tensor.datatype]))


def _reshape(draw: Draw, request: HostileRequest) -> None:
    """Declare a shape that fits neither the bytes nor the model."""
    tensor = _any_tensor(draw, request)
    dims = st.lists(st.integers(-3, 2**40) | st.sampled_from([0, -1, 2**62, -(2**63), 2**63 - 1]), max_size=6)
    tensor.shape = draw(dims.filter(lambda shape: shape != tensor.shape and _size(shape) != len(tensor.data)))


def _size(shape: list[int]) -> int:
    return int(np.prod(np.array(shape, dtype=object))) if shape else 1


def _oversize_batch(draw: Draw, request: HostileRequest) -> None:
    """Send more faces than max_batch_size."""
    count = draw(st.integers(129, 200))
    for tensor in request.tensors:
        rows = len(tensor.data) // FACES
        tensor.data, tensor.shape = tensor.data[:rows] * count, [count, *tensor.shape[1:]]


def _truncate(draw: Draw, request: HostileRequest) -> None:
    """Cut the end off a tensor's bytes."""
    tensor = _any_tensor(draw, request)
    tensor.data = tensor.data[: draw(st.integers(0, max(0, len(tensor.data) - 1)))]


def _extend(draw: Draw, request: HostileRequest) -> None:
    """Send more bytes than the shape needs."""
    tensor = _any_tensor(draw, request)
    tensor.data += bytes(draw(st.integers(1, 5000)))


def _unknown_output(draw: Draw, request: HostileRequest) -> None:
    """Request an output that the model does not have."""
    request.outputs.append(f"Z{draw(st.text(max_size=40))}")


def _invalid_landmarks(draw: Draw, request: HostileRequest) -> None:
    """Make the landmarks of a face invalid."""
    points = _LANDMARKS.copy()
    face = draw(st.integers(0, FACES - 1))
    kind = draw(st.sampled_from(["NaN", "infinite", "far", "one line", "one point", "no eye distance"]))
    point = draw(st.integers(0, 67))
    if kind == "one line":
        points[face, :, 1] = draw(st.integers(-100, 100))
    elif kind == "one point":
        points[face] = draw(st.integers(-100, 100))
    elif kind == "no eye distance":
        points[face, 42:48] = points[face, 36:42]
    else:
        points[face, point, draw(st.integers(0, 1))] = {"NaN": np.nan, "infinite": np.inf, "far": 1e9}[kind]
    tensor = next(tensor for tensor in request.tensors if tensor.name == "LANDMARKS")
    tensor.data = points.tobytes()


def _invalid_pixel(draw: Draw, request: HostileRequest) -> None:
    """Make a pixel non-finite or huge."""
    pixels = _FRAMES.copy()
    pixel = draw(st.integers(0, pixels.size - 1))
    pixels.flat[pixel] = draw(st.sampled_from([np.nan, np.inf, -np.inf, 1e30, -1e30]))
    tensor = next(tensor for tensor in request.tensors if tensor.name == "FRAMES")
    tensor.data = pixels.tobytes()


def _tiny_frames(draw: Draw, request: HostileRequest) -> None:
    """Send frames with a side below the minimum."""
    height, width = draw(st.integers(1, 15)), draw(st.integers(1, 300))
    tensor = next(tensor for tensor in request.tensors if tensor.name.startswith("FRAMES"))
    pixel = 1 if tensor.datatype == "UINT8" else 4
    tensor.shape = [FACES, 3, height, width]
    tensor.data = bytes(FACES * 3 * height * width * pixel)


_DEFECTS_OF_REQUESTS: tuple[Defect, ...] = (
    _drop,
    _rename,
    _add,
    _retype,
    _reshape,
    _oversize_batch,
    _truncate,
    _extend,
    _unknown_output,
)
_DEFECTS_OF_FACES: tuple[Defect, ...] = (_invalid_landmarks, _tiny_frames)


@st.composite
def hostile_requests(draw: Draw) -> HostileRequest:
    """Draw a hostile request."""
    model = draw(st.sampled_from(sorted(OUTPUTS)))
    frames_type = draw(st.sampled_from(["FP32", "UINT8"]))
    request = valid_request(model, frames_type)
    defects = list(_DEFECTS_OF_REQUESTS)
    if model in ("ensemble", "align_mask"):
        defects += _DEFECTS_OF_FACES
        defects += [_invalid_pixel] * (frames_type == "FP32")
    first = draw(st.sampled_from(defects))
    first(draw, request)
    request.defects.append(first.__doc__)
    # The second defect must not repair the first: an unknown output repairs no defect of an input.
    if first not in (_drop, _unknown_output) and draw(st.booleans()):
        _unknown_output(draw, request)
        request.defects.append(_unknown_output.__doc__)
    return request


def send_over_grpc(channel: grpc.Channel, request: HostileRequest) -> Response:
    """Send a request over gRPC."""
    return send_grpc_bytes(channel, grpc_message(request))


def grpc_message(request: HostileRequest) -> bytes:
    """Return a request as a serialized gRPC message."""
    message = service_pb2.ModelInferRequest(
        model_name=request.model,
        inputs=[
            {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
            for tensor in request.tensors
        ],
        outputs=[{"name": name} for name in request.outputs],
        raw_input_contents=[tensor.data for tensor in request.tensors],
    )
    return message.SerializeToString()


def send_grpc_bytes(channel: grpc.Channel, message: bytes) -> Response:
    """Send arbitrary bytes as an inference request over gRPC."""
    infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    try:
        infer(message, timeout=RESPONSE_SECONDS)
    except grpc.RpcError as error:
        return Response(error.code().name, error.details() or "")
    return Response("OK", "")


def send_over_http(connection: http.client.HTTPConnection, request: HostileRequest) -> Response:
    """Send a request over HTTP."""
    header, data = http_parts(request)
    return send_http_bytes(connection, request.model, header, data, len(header))


def http_parts(request: HostileRequest) -> tuple[bytes, bytes]:
    """Return a request as HTTP's JSON and the binary data that follows it."""
    inputs = [
        {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": tensor.shape,
            "parameters": {"binary_data_size": len(tensor.data)},
        }
        for tensor in request.tensors
    ]
    outputs = [{"name": name, "parameters": {"binary_data": True}} for name in request.outputs]
    header = json.dumps({"inputs": inputs, "outputs": outputs}).encode()
    return header, b"".join(tensor.data for tensor in request.tensors)


def send_http_bytes(
    connection: http.client.HTTPConnection, model: str, header: bytes, data: bytes, header_length: int
) -> Response:
    """Send arbitrary bytes as the JSON and the binary data of an inference request over HTTP."""
    try:
        connection.request(
            "POST",
            f"/v2/models/{model}/infer",
            header + data,
            {"Inference-Header-Content-Length": str(header_length)},
        )
        response = connection.getresponse()
        body = response.read()
    except (http.client.HTTPException, ConnectionError):
        connection.close()
        return Response("no response", "")
    if response.status == http.client.OK:
        return Response("200", "")
    try:
        reason = json.loads(body).get("error", "")
    except ValueError:
        reason = body.decode(errors="replace")
    return Response(str(response.status), reason)


@dataclasses.dataclass
class TruncatedRequest:
    """A valid request with one truncated part, or with a header length that is too small.

    Attributes
    ----------
    model, frames_type : str
        Arguments of `valid_request`.
    part : str
        "message" (gRPC), "header" (HTTP's JSON), "header length" (HTTP) or "data" (HTTP).
    keep : float
        Fraction of the part that is sent; factor of the header length.
    """

    model: str
    frames_type: str
    part: str
    keep: float


def truncated_requests() -> st.SearchStrategy[TruncatedRequest]:
    """Draw a truncated request."""
    return st.builds(
        TruncatedRequest,
        st.sampled_from(sorted(OUTPUTS)),
        st.sampled_from(["FP32", "UINT8"]),
        st.sampled_from(["message", "header", "header length", "data"]),
        st.floats(0, 1, exclude_max=True),
    )


def send_truncated(
    channel: grpc.Channel, connection: http.client.HTTPConnection, truncated: TruncatedRequest
) -> Response:
    """Send a truncated request."""
    request = valid_request(truncated.model, truncated.frames_type)
    if truncated.part == "message":
        message = grpc_message(request)
        return send_grpc_bytes(channel, message[: int(truncated.keep * len(message))])
    header, data = http_parts(request)
    if truncated.part == "header":
        header = header[: int(truncated.keep * len(header))]
    if truncated.part == "data":
        data = data[: int(truncated.keep * len(data))]
    length = int(truncated.keep * len(header)) if truncated.part == "header length" else len(header)
    return send_http_bytes(connection, truncated.model, header, data, length)
