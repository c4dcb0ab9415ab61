"""`triton_face_client.pyfeat`: py-feat's functions, computed by a real server."""

import concurrent.futures
import os
import subprocess
import sys
import threading
import types
from collections.abc import Iterator

import numpy as np
import pytest
import torch

import triton_face_client
from deploy.local import LocalServer
from deploy.local.server import PROJECT
from tests.support import oracles
from tests.support.face_data import photo_faces
from tests.support.raw_requests import infer
from triton_face_client import FaceFeatureClient, pyfeat, subject_pose


@pytest.fixture(autouse=True)
def _connected(server: LocalServer) -> Iterator[None]:
    """Connect the module `pyfeat` to the test server; reset the module afterwards."""
    with pyfeat.connect(server.grpc_url):
        yield
    pyfeat._default.clear()


def pyfeat_faces(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return crops ``[count, 3, 112, 112]`` and normalized, interleaved landmarks ``[count, 136]``."""
    frames, landmarks = photo_faces(count, seed)
    return torch.from_numpy(frames), torch.from_numpy(landmarks / np.float32(112)).reshape(count, 136)


def test_hog_features_of_normalized_landmarks(client: FaceFeatureClient):
    faces, landmarks = pyfeat_faces(40, 361)
    features, aligned = pyfeat.extract_hog_features_batched(faces, landmarks, hog_layer=None)
    assert isinstance(features, np.ndarray)  # as py-feat's classifiers require
    assert (features.shape, features.dtype) == ((40, 5408), np.float32)
    assert [(points.shape, points.dtype) for points in aligned] == [((68, 2), np.int64)] * 40
    pixels = landmarks.reshape(40, 68, 2).numpy() * np.float32(112)
    for face in range(40):
        affine = oracles.affine(pixels[face])
        expected = np.trunc(pixels[face].astype(np.float64) @ affine[:, :2].T + affine[:, 2])
        np.testing.assert_array_equal(aligned[face], expected)
    masked = client.align(faces, pixels, ["MASKED_FACES"])["MASKED_FACES"].numpy()
    equals_skimage = [
        np.abs(oracles.hog_features(masked_face) - hog).max() <= 1e-5
        for masked_face, hog in zip(masked, features, strict=True)
    ]
    # scikit-image itself differs from py-feat on some faces (docs/SPEC.md, section 4).
    assert np.mean(equals_skimage) >= 0.9
    tensors = {"FRAMES": faces.numpy(), "LANDMARKS": pixels}
    np.testing.assert_array_equal(features, infer(client, "ensemble", tensors, ["HOG"])["HOG"])


def test_hog_features_of_crops_that_are_not_square():
    frames, landmarks = photo_faces(5, 362, (97, 131))
    normalized = (landmarks / np.float32([131, 97])).reshape(5, 136)
    features, _ = pyfeat.extract_hog_features(frames, normalized)
    pixels = normalized.reshape(5, 68, 2) * np.float32([131, 97])
    with FaceFeatureClient(pyfeat._client().target) as client:
        np.testing.assert_array_equal(features, client.features(frames, pixels, ["HOG"])["HOG"])


@pytest.mark.parametrize("shape", [(0, 136), (0,), (0, 68, 2)])
def test_no_faces_give_empty_results(shape: tuple[int, ...]):
    features, aligned = pyfeat.extract_hog_features(torch.zeros(0, 3, 112, 112), torch.zeros(shape))
    assert features.shape == (0, 5408)
    assert aligned == []


@pytest.mark.parametrize("shape", [(2, 956), (2, 1434), (2, 68, 2), (136,), (2, 134)])
def test_rejects_other_layouts_and_names_the_converter(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"not \[N, 136\].*triton_face_client\.landmarks\.from_mediapipe"):
        pyfeat.extract_hog_features(torch.zeros(2, 3, 112, 112), torch.zeros(shape))


def test_rejects_a_hog_layer_with_other_settings():
    faces, landmarks = pyfeat_faces(2, 363)
    settings = {
        "orientations": 8,
        "pixels_per_cell": 8,
        "cells_per_block": 2,
        "transform_sqrt": False,
        "block_normalization": "l2-hys",
        "feature_vector": True,
    }
    same, _ = pyfeat.extract_hog_features(faces, landmarks, types.SimpleNamespace(**settings))
    np.testing.assert_array_equal(same, pyfeat.extract_hog_features(faces, landmarks)[0])
    for name, value in (("orientations", 9), ("block_normalization", None), ("feature_vector", False)):
        layer = types.SimpleNamespace(**settings | {name: value})
        message = f"hog_layer has {name}={value!r}, but the server .* computes {name}={settings[name]!r}: "
        with pytest.raises(ValueError, match=message):
            pyfeat.extract_hog_features(faces, landmarks, layer)


@pytest.mark.parametrize("container", ["tensors", "arrays"])
def test_equals_the_client_for_tensors_and_arrays(client: FaceFeatureClient, container: str):
    frames, landmarks = photo_faces(6, 364)
    expected = client.align(
        frames, landmarks, ["MASKED_FACES", "ALIGNED_FACES", "ALIGNED_LANDMARKS", "AFFINE"]
    )
    pose = client.pose(landmarks)
    if container == "tensors":
        frames, landmarks = torch.from_numpy(frames), torch.from_numpy(landmarks)
    masked, points = pyfeat.extract_faces_from_landmarks_batched(frames, landmarks)
    aligned, aligned_landmarks, affine = pyfeat.align_faces_batched(frames, landmarks, face_size=112)
    raw = pyfeat.pose_from_landmarks_mlp(landmarks, bboxes=None)
    subject = pyfeat.pose_from_landmarks(landmarks, convention="subject")
    for value in (masked, aligned, aligned_landmarks, affine, raw, subject):
        assert isinstance(value, torch.Tensor if container == "tensors" else np.ndarray)
    np.testing.assert_array_equal(masked, expected["MASKED_FACES"])
    np.testing.assert_array_equal(points, expected["ALIGNED_LANDMARKS"])
    np.testing.assert_array_equal(aligned, expected["ALIGNED_FACES"])
    np.testing.assert_array_equal(aligned_landmarks, expected["ALIGNED_LANDMARKS"])
    np.testing.assert_array_equal(affine, expected["AFFINE"])
    np.testing.assert_array_equal(raw, pose)
    np.testing.assert_array_equal(subject, subject_pose(pose))


def test_rejects_settings_that_the_server_does_not_have():
    frames, landmarks = photo_faces(1, 365)
    with pytest.raises(ValueError, match=r"face_size=96 and .* configured to 112 and 2\.5"):
        pyfeat.align_faces(frames, landmarks, face_size=96)
    with pytest.raises(ValueError, match=r"box_enlarge=2\.0"):
        pyfeat.extract_faces(frames, landmarks, box_enlarge=2.0)
    with pytest.raises(ValueError, match="pass 'raw' or 'subject'"):
        pyfeat.pose_from_landmarks(landmarks, convention="degrees")


def test_face_without_a_pose_is_nan_as_in_pyfeat():
    _, landmarks = photo_faces(3, 366)
    landmarks[1, 4] = np.nan
    assert np.isnan(pyfeat.pose_from_landmarks(landmarks)).any(axis=1).tolist() == [False, True, False]


def test_reads_the_address_from_the_environment(server: LocalServer):
    script = (
        "import numpy as np; from triton_face_client.pyfeat import pose_from_landmarks_mlp as pose;"
        "print(pose(np.random.default_rng(0).uniform(0, 99, (2, 68, 2))).shape)"
    )
    completed = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"TRITON_FACE_URL": server.grpc_url},
        cwd=PROJECT,
        capture_output=True,
        text=True,
    )
    assert completed.stdout == "(2, 6)\n", completed.stderr


def test_concurrent_first_calls_create_one_client(server: LocalServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TRITON_FACE_URL", server.grpc_url)
    pyfeat._default.clear()
    _, landmarks = photo_faces(2, 367)
    barrier = threading.Barrier(8)

    def call(_number: int) -> FaceFeatureClient:
        barrier.wait()
        pyfeat.pose_from_landmarks(landmarks)
        return pyfeat._default["client"]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert len(set(map(id, pool.map(call, range(8))))) == 1
    pyfeat._default["client"].close()


def test_import_needs_only_numpy_and_tritonclient():
    blocked = ["torch", "cv2", "PIL", "pyarrow", "tqdm", "matplotlib", "pandas", "scipy"]
    script = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked}));"
        "import triton_face_client, triton_face_client.pyfeat, triton_face_client.landmarks;"
        "from triton_face_client.cli import arguments, info, bench"
    )
    subprocess.run([sys.executable, "-c", script], cwd=PROJECT, check=True)


def test_package_exports_the_functions():
    names = (
        "extract_hog_features",
        "extract_faces",
        "align_faces",
        "pose_from_landmarks",
        "detect_au",
        "connect",
    )
    for name in names:
        assert getattr(triton_face_client, name) is getattr(pyfeat, name)
