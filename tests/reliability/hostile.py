"""Requests that nobody should send, drawn by hypothesis, and how they are sent: past every client's checks.

A hostile request is a sound one with one to three harms done to it, each of which alone makes it unservable.
It is a plain description, so that a failing one can be read, and hypothesis can make it simpler.
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

ANSWER_SECONDS = 30.0

OUTPUTS = {
    "ensemble": ("HOG", "POSE", "ALIGNED_LANDMARKS", "AFFINE", "MASK"),
    "align_mask": ("MASKED_FACES", "ALIGNED_FACES", "ALIGNED_LANDMARKS", "AFFINE", "MASK"),
    "hog": ("HOG",),
    "pose_mlp": ("POSE",),
}

DATATYPES = ("BOOL", "UINT8", "UINT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BYTES", "FP33", "", "fp32")


@dataclasses.dataclass
class Tensor:
    """A tensor as it is declared, and its bytes, which need not fit."""

    name: str
    datatype: str
    shape: list[int]
    data: bytes


@dataclasses.dataclass
class Hostile:
    """A request, what is wrong with it, and how it goes over HTTP beside that.

    Attributes
    ----------
    model : str
        Which model is asked.
    tensors : list of Tensor
        Its inputs.
    outputs : list of str
        What is asked for.
    harms : list of str
        What was done to it.
    """

    model: str
    tensors: list[Tensor]
    outputs: list[str]
    harms: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Answer:
    """What came back: gRPC's status or HTTP's, and the text beside it."""

    status: str
    reason: str


_FRAMES, _LANDMARKS = photo_faces(FACES, 600, CROP)


def sound(model: str, kind: str) -> Hostile:
    """Return a request that is served, to start from; `kind` is FP32 or UINT8."""
    values = {"LANDMARKS": _LANDMARKS}
    if model == "hog":
        values = {"MASKED_FACES": np.zeros((FACES, 3, 112, 112), np.float32)}
    elif model != "pose_mlp":
        is_float = kind == "FP32"
        values["FRAMES" if is_float else "FRAMES_UINT8"] = (
            _FRAMES if is_float else (255 * _FRAMES).astype(np.uint8)
        )
    return Hostile(
        model,
        [
            Tensor(name, "UINT8" if array.dtype == np.uint8 else "FP32", list(array.shape), array.tobytes())
            for name, array in values.items()
        ],
        list(OUTPUTS[model]),
    )


Draw = Callable[[st.SearchStrategy], object]
Harm = Callable[[Draw, Hostile], None]


def _any_tensor(draw: Draw, request: Hostile) -> Tensor:
    return draw(st.sampled_from(request.tensors))


def _drop(draw: Draw, request: Hostile) -> None:
    """Leave an input out, the landmarks where they are one of two."""
    request.tensors.remove(_any_tensor(draw, request))


def _rename(draw: Draw, request: Hostile) -> None:
    """Call an input by a name that the model does not know."""
    name = draw(st.text(max_size=40).filter(lambda text: text not in {"FRAMES", "FRAMES_UINT8", "LANDMARKS"}))
    _any_tensor(draw, request).name = f"X{name}"


def _add(draw: Draw, request: Hostile) -> None:
    """Send one input more than there are."""
    request.tensors.append(Tensor(f"Y{draw(st.text(max_size=10))}", "FP32", [FACES, 1], bytes(4 * FACES)))


def _retype(draw: Draw, request: Hostile) -> None:
    """Declare another datatype."""
    tensor = _any_tensor(draw, request)
    tensor.datatype = draw(st.sampled_from([kind for kind in DATATYPES if kind != tensor.datatype]))


def _reshape(draw: Draw, request: Hostile) -> None:
    """Declare a shape that the bytes or the model do not have."""
    tensor = _any_tensor(draw, request)
    dims = st.lists(st.integers(-3, 2**40) | st.sampled_from([0, -1, 2**62, -(2**63), 2**63 - 1]), max_size=6)
    tensor.shape = draw(dims.filter(lambda shape: shape != tensor.shape and _size(shape) != len(tensor.data)))


def _size(shape: list[int]) -> int:
    return int(np.prod(np.array(shape, dtype=object))) if shape else 1


def _other_batch(draw: Draw, request: Hostile) -> None:
    """Declare more faces than max_batch_size, with all their bytes."""
    count = draw(st.integers(129, 200))
    for tensor in request.tensors:
        rows = len(tensor.data) // FACES
        tensor.data, tensor.shape = tensor.data[:rows] * count, [count, *tensor.shape[1:]]


def _truncate(draw: Draw, request: Hostile) -> None:
    """Cut the end off a tensor's bytes."""
    tensor = _any_tensor(draw, request)
    tensor.data = tensor.data[: draw(st.integers(0, max(0, len(tensor.data) - 1)))]


def _extend(draw: Draw, request: Hostile) -> None:
    """Send more bytes than the shape has."""
    tensor = _any_tensor(draw, request)
    tensor.data += bytes(draw(st.integers(1, 5000)))


def _unknown_output(draw: Draw, request: Hostile) -> None:
    """Ask for something that the model does not give."""
    request.outputs.append(f"Z{draw(st.text(max_size=40))}")


def _unservable_landmarks(draw: Draw, request: Hostile) -> None:
    """Give a face landmarks that no mask can be made of."""
    points = _LANDMARKS.copy()
    face = draw(st.integers(0, FACES - 1))
    kind = draw(st.sampled_from(["NaN", "infinite", "far", "line", "point", "eyes"]))
    at = draw(st.integers(0, 67))
    if kind == "line":
        points[face, :, 1] = draw(st.integers(-100, 100))
    elif kind == "point":
        points[face] = draw(st.integers(-100, 100))
    elif kind == "eyes":
        points[face, 42:48] = points[face, 36:42]
    else:
        points[face, at, draw(st.integers(0, 1))] = {"NaN": np.nan, "infinite": np.inf, "far": 1e9}[kind]
    tensor = next(tensor for tensor in request.tensors if tensor.name == "LANDMARKS")
    tensor.data = points.tobytes()


def _unservable_pixels(draw: Draw, request: Hostile) -> None:
    """Give a face a pixel that is none."""
    pixels = _FRAMES.copy()
    pixel = draw(st.integers(0, pixels.size - 1))
    pixels.flat[pixel] = draw(st.sampled_from([np.nan, np.inf, -np.inf, 1e30, -1e30]))
    tensor = next(tensor for tensor in request.tensors if tensor.name == "FRAMES")
    tensor.data = pixels.tobytes()


def _tiny_frames(draw: Draw, request: Hostile) -> None:
    """Send frames in which no face can be told."""
    height, width = draw(st.integers(1, 15)), draw(st.integers(1, 300))
    tensor = next(tensor for tensor in request.tensors if tensor.name.startswith("FRAMES"))
    pixel = 1 if tensor.datatype == "UINT8" else 4
    tensor.shape = [FACES, 3, height, width]
    tensor.data = bytes(FACES * 3 * height * width * pixel)


_ANYWHERE: tuple[Harm, ...] = (
    _drop,
    _rename,
    _add,
    _retype,
    _reshape,
    _other_batch,
    _truncate,
    _extend,
    _unknown_output,
)
_OF_FACES: tuple[Harm, ...] = (_unservable_landmarks, _tiny_frames)


@st.composite
def hostile_requests(draw: Draw) -> Hostile:
    """Draw a hostile request."""
    model = draw(st.sampled_from(sorted(OUTPUTS)))
    kind = draw(st.sampled_from(["FP32", "UINT8"]))
    request = sound(model, kind)
    harms = list(_ANYWHERE)
    if model in ("ensemble", "align_mask"):
        harms += _OF_FACES
        harms += [_unservable_pixels] * (kind == "FP32")
    first = draw(st.sampled_from(harms))
    first(draw, request)
    request.harms.append(first.__doc__)
    # A second harm may undo nothing of the first: only such as do not touch the same thing.
    if first not in (_drop, _unknown_output) and draw(st.booleans()):
        _unknown_output(draw, request)
        request.harms.append(_unknown_output.__doc__)
    return request


def over_grpc(channel: grpc.Channel, request: Hostile) -> Answer:
    """Send a request over gRPC as it is."""
    return raw_grpc(channel, grpc_message(request))


def grpc_message(request: Hostile) -> bytes:
    """Return a request as gRPC's message."""
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


def raw_grpc(channel: grpc.Channel, message: bytes) -> Answer:
    """Send the bytes of an inference request over gRPC, whatever they are."""
    infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    try:
        infer(message, timeout=ANSWER_SECONDS)
    except grpc.RpcError as error:
        return Answer(error.code().name, error.details() or "")
    return Answer("OK", "")


def over_http(connection: http.client.HTTPConnection, request: Hostile) -> Answer:
    """Send a request over HTTP as it is."""
    header, data = http_parts(request)
    return raw_http(connection, request.model, header, data, len(header))


def http_parts(request: Hostile) -> tuple[bytes, bytes]:
    """Return a request as HTTP's JSON and the binary data behind it."""
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


def raw_http(
    connection: http.client.HTTPConnection, model: str, header: bytes, data: bytes, header_length: int
) -> Answer:
    """Send the two parts of an inference request over HTTP, whatever they are."""
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
        return Answer("no answer", "")
    if response.status == http.client.OK:
        return Answer("200", "")
    try:
        reason = json.loads(body).get("error", "")
    except ValueError:
        reason = body.decode(errors="replace")
    return Answer(str(response.status), reason)


@dataclasses.dataclass
class Damaged:
    """A sound request of which a part is lost or wrong on its way.

    Attributes
    ----------
    model, kind : str
        Which request, as for `sound`.
    part : str
        "message" (of gRPC), "header" (of HTTP, its JSON), "header length" or "data".
    keep : float
        Share of the part that is left; of a header length, what it is multiplied with.
    """

    model: str
    kind: str
    part: str
    keep: float


def damaged_requests() -> st.SearchStrategy[Damaged]:
    """Draw a damaged request."""
    return st.builds(
        Damaged,
        st.sampled_from(sorted(OUTPUTS)),
        st.sampled_from(["FP32", "UINT8"]),
        st.sampled_from(["message", "header", "header length", "data"]),
        st.floats(0, 1, exclude_max=True),
    )


def send_damaged(channel: grpc.Channel, connection: http.client.HTTPConnection, damaged: Damaged) -> Answer:
    """Send what is left of a request."""
    request = sound(damaged.model, damaged.kind)
    if damaged.part == "message":
        whole = grpc_message(request)
        return raw_grpc(channel, whole[: int(damaged.keep * len(whole))])
    header, data = http_parts(request)
    if damaged.part == "header":
        header = header[: int(damaged.keep * len(header))]
    if damaged.part == "data":
        data = data[: int(damaged.keep * len(data))]
    length = int(damaged.keep * len(header)) if damaged.part == "header length" else len(header)
    return raw_http(connection, damaged.model, header, data, length)
