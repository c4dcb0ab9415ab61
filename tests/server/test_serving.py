"""What needs the local server's own endpoints or files: HTTP beside gRPC, the repository's imports."""

import ast
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as httpclient
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from tests.acceptance.agreement import assert_agree
from tests.acceptance.target import Tensors, frame_inputs
from tests.acceptance.test_invalid_faces import check_alternating_valid_and_invalid
from tests.support.face_data import photo_faces
from tests.support.interface import ALIGN_OUTPUTS, ENSEMBLE_OUTPUTS
from tests.support.raw_requests import infer
from triton_face_client import FaceFeatureClient


def infer_http(
    http: httpclient.InferenceServerClient, model: str, tensors: Tensors, outputs: Sequence[str]
) -> Tensors:
    inputs = []
    for name, values in tensors.items():
        tensor = httpclient.InferInput(name, list(values.shape), np_to_triton_dtype(values.dtype))
        inputs.append(tensor.set_data_from_numpy(values))
    result = http.infer(model, inputs, outputs=[httpclient.InferRequestedOutput(name) for name in outputs])
    return {name: result.as_numpy(name) for name in outputs}


@pytest.mark.parametrize(("model", "names"), [("ensemble", ENSEMBLE_OUTPUTS), ("align_mask", ALIGN_OUTPUTS)])
def test_http_gives_the_same_bits(
    client: FaceFeatureClient,
    http: httpclient.InferenceServerClient,
    model: str,
    names: tuple[str, ...],
):
    inputs = frame_inputs(*photo_faces(5, 55))
    over_grpc = infer(client, model, inputs, names)
    over_http = infer_http(http, model, inputs, names)
    for name in names:
        np.testing.assert_array_equal(over_http[name], over_grpc[name])


def test_over_http_a_bad_face_is_a_client_error(http: httpclient.InferenceServerClient):
    frames, landmarks = photo_faces(1, 65)
    landmarks[0, 0] = np.nan
    with pytest.raises(InferenceServerException) as caught:
        infer_http(http, "ensemble", frame_inputs(frames, landmarks), ["HOG"])
    assert caught.value.status() == "400"
    assert "face 0: non-finite landmark" in caught.value.message()


def test_over_http_refusals_do_not_stall_the_ensemble(http: httpclient.InferenceServerClient):
    check_alternating_valid_and_invalid(
        lambda tensors: infer_http(http, "ensemble", tensors, ["HOG", "POSE"]),
        functools.partial(assert_agree, inexact=frozenset()),
    )


def test_repository_needs_nothing_from_outside(repository: Path):
    """Its Python files import the standard library, the container's packages and each other."""
    folder = repository / "align_mask" / "1"
    allowed = {"cv2", "numpy", "scipy", "skimage", "torch", "triton_python_backend_utils"}
    allowed |= {"align_mask"} | set(sys.stdlib_module_names)
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert {name.split(".")[0] for name in names} <= allowed, path.name
