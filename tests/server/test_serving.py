"""Requests over HTTP, and the imports of align_mask."""

import functools
import subprocess
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
    http_client: httpclient.InferenceServerClient, model: str, tensors: Tensors, outputs: Sequence[str]
) -> Tensors:
    """Send one request over HTTP; return the requested outputs."""
    inputs = []
    for name, values in tensors.items():
        tensor = httpclient.InferInput(name, list(values.shape), np_to_triton_dtype(values.dtype))
        inputs.append(tensor.set_data_from_numpy(values))
    result = http_client.infer(
        model, inputs, outputs=[httpclient.InferRequestedOutput(name) for name in outputs]
    )
    return {name: result.as_numpy(name) for name in outputs}


@pytest.mark.parametrize(("model", "names"), [("ensemble", ENSEMBLE_OUTPUTS), ("align_mask", ALIGN_OUTPUTS)])
def test_http_and_grpc_responses_have_the_same_bits(
    client: FaceFeatureClient,
    http_client: httpclient.InferenceServerClient,
    model: str,
    names: tuple[str, ...],
):
    inputs = frame_inputs(*photo_faces(5, 55))
    over_grpc = infer(client, model, inputs, names)
    over_http = infer_http(http_client, model, inputs, names)
    for name in names:
        np.testing.assert_array_equal(over_http[name], over_grpc[name])


def test_invalid_face_is_http_status_400(http_client: httpclient.InferenceServerClient):
    frames, landmarks = photo_faces(1, 65)
    landmarks[0, 0] = np.nan
    with pytest.raises(InferenceServerException) as caught:
        infer_http(http_client, "ensemble", frame_inputs(frames, landmarks), ["HOG"])
    assert caught.value.status() == "400"
    assert "face 0: non-finite landmark" in caught.value.message()


def test_rejections_over_http_do_not_stall_the_ensemble(http_client: httpclient.InferenceServerClient):
    check_alternating_valid_and_invalid(
        lambda tensors: infer_http(http_client, "ensemble", tensors, ["HOG", "POSE"]),
        functools.partial(assert_agree, inexact=frozenset()),
    )


IMPORT_WITHOUT = """
import runpy
import sys
import types


class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[2:]:
            raise ImportError(f"{name} is not in the image")


sys.meta_path.insert(0, Blocked())
sys.modules["triton_python_backend_utils"] = types.ModuleType("triton_python_backend_utils")
print(sorted(name for name in runpy.run_path(sys.argv[1]) if name.startswith("Triton")))
"""


def test_align_mask_imports_only_packages_of_the_image(repository: Path):
    """The image has neither this project's packages nor SciPy and scikit-image."""
    missing = ["scipy", "skimage", "matplotlib", "onnxruntime", "tritonclient", "triton_face_client"]
    model = repository / "align_mask" / "1" / "model.py"
    command = [sys.executable, "-I", "-c", IMPORT_WITHOUT, str(model), *missing, "deploy", "export", "tests"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.stdout == "['TritonPythonModel']\n", run.stderr
