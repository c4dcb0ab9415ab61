"""Tensors, shapes, types and batch sizes equal the fixed interface."""

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from tests.acceptance.target import frame_inputs, infer
from tests.support.face_data import photo_faces
from tests.support.interface import ALIGN_OUTPUTS, ENSEMBLE_OUTPUTS, INTERFACE, MAX_BATCH_SIZE
from triton_face_client import FaceFeatureClient

pytestmark = pytest.mark.checks("The interface: tensors, shapes, types, 1 to 128 faces a request")

OUTPUTS = {"ensemble": ENSEMBLE_OUTPUTS, "align_mask": ALIGN_OUTPUTS}


@pytest.mark.parametrize("model", INTERFACE)
def test_metadata_equals_the_interface(client: FaceFeatureClient, model: str):
    metadata = client.connection.get_model_metadata(model)
    for tensors, described in zip(INTERFACE[model], (metadata.inputs, metadata.outputs), strict=True):
        assert [(tensor.name, f"TYPE_{tensor.datatype}", list(tensor.shape)) for tensor in described] == [
            (name, kind, [-1, *dims]) for name, kind, dims in tensors
        ]


@pytest.mark.parametrize("model", INTERFACE)
def test_max_batch_size_is_128(client: FaceFeatureClient, model: str):
    assert client.connection.get_model_config(model).config.max_batch_size == MAX_BATCH_SIZE


@pytest.mark.parametrize("model", OUTPUTS)
@pytest.mark.parametrize("count", [1, 64, MAX_BATCH_SIZE])
def test_outputs_have_the_documented_shapes_and_types(client: FaceFeatureClient, model: str, count: int):
    results = infer(client, model, frame_inputs(*photo_faces(count, 51)), OUTPUTS[model])
    for name, kind, dims in INTERFACE[model][1]:
        assert results[name].shape == (count, *dims)
        assert results[name].dtype == triton_to_np_dtype(kind.removeprefix("TYPE_"))


@pytest.mark.parametrize("model", OUTPUTS)
def test_rejects_more_faces_than_max_batch_size(client: FaceFeatureClient, model: str):
    frames, landmarks = photo_faces(1, 52, (16, 16))
    copies = np.zeros(MAX_BATCH_SIZE + 1, dtype=int)
    with pytest.raises(InferenceServerException, match=str(MAX_BATCH_SIZE)) as caught:
        infer(client, model, frame_inputs(frames[copies], landmarks[copies]), OUTPUTS[model])
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


@pytest.mark.parametrize("model", OUTPUTS)
def test_empty_request_is_rejected_or_has_no_rows(client: FaceFeatureClient, model: str):
    """Triton 2.51 rejects an empty request; a version that accepts it must return no rows."""
    frames, landmarks = photo_faces(1, 53)
    try:
        results = infer(client, model, frame_inputs(frames[:0], landmarks[:0]), OUTPUTS[model])
    except InferenceServerException as error:
        assert error.status() == "StatusCode.INVALID_ARGUMENT"  # noqa: PT017
    else:
        assert {len(rows) for rows in results.values()} == {0}


@pytest.mark.parametrize(
    ("frames", "landmarks"),
    [
        (np.zeros((1, 1, 112, 112), np.float32), np.zeros((1, 68, 2), np.float32)),
        (np.zeros((1, 3, 112, 112), np.float32), np.zeros((1, 478, 2), np.float32)),
        (np.zeros((1, 3, 112, 112), np.float32), np.zeros((1, 136), np.float32)),
        (np.zeros((1, 3, 112, 112), np.float64), np.zeros((1, 68, 2), np.float32)),
        (np.zeros((2, 3, 112, 112), np.float32), np.zeros((1, 68, 2), np.float32)),
    ],
    ids=["one channel", "478 points", "flat landmarks", "float64", "counts differ"],
)
def test_rejects_wrong_shapes_and_types(client: FaceFeatureClient, frames: np.ndarray, landmarks: np.ndarray):
    with pytest.raises(InferenceServerException) as caught:
        infer(client, "ensemble", {"FRAMES": frames, "LANDMARKS": landmarks}, ["HOG", "POSE"])
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


@pytest.mark.parametrize("model", OUTPUTS)
@pytest.mark.parametrize(("given", "word"), [((), "neither"), (("FRAMES", "FRAMES_UINT8"), "both")])
def test_requires_exactly_one_of_frames_and_frames_uint8(
    client: FaceFeatureClient, model: str, given: tuple[str, ...], word: str
):
    frames, landmarks = photo_faces(2, 59)
    by_name = {"FRAMES": frames, "FRAMES_UINT8": (255 * frames).astype(np.uint8)}
    tensors = {name: by_name[name] for name in given} | {"LANDMARKS": landmarks}
    with pytest.raises(
        InferenceServerException, match=f"{word} of FRAMES and FRAMES_UINT8 given: send"
    ) as caught:
        infer(client, model, tensors, ["MASK"])
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


@pytest.mark.parametrize("name", ["FRAMES", "FRAMES_UINT8"])
def test_rejects_frames_without_landmarks(client: FaceFeatureClient, name: str):
    """On Triton 2.51 align_mask rejects the request; a later Triton may reject it with another message."""
    frames = np.zeros((2, 3, 112, 112), dtype=np.float32 if name == "FRAMES" else np.uint8)
    with pytest.raises(InferenceServerException, match="LANDMARKS") as caught:
        infer(client, "align_mask", {name: frames}, ["MASK"])
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
