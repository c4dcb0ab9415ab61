"""Affine and aligned landmarks, compared with an oracle in complex arithmetic."""

import numpy as np
import pytest
import torch

from align_mask.alignment import align
from tests.support import oracles
from tests.support.face_data import extreme_landmarks, photo_faces


@pytest.mark.parametrize(
    "landmarks", [photo_faces(40, 1)[1], extreme_landmarks(300, 2)], ids=["photo", "extreme"]
)
def test_affine_and_landmarks_match_oracle(landmarks: np.ndarray):
    alignment = align(torch.from_numpy(landmarks), 112, 2.5)
    expected = np.array([oracles.affine(face) for face in landmarks])
    np.testing.assert_allclose(alignment.affine.numpy(), expected, rtol=1e-9, atol=1e-9)

    points = np.einsum("nij,nkj->nki", expected[:, :, :2], landmarks.astype(float)) + expected[:, None, :, 2]
    # Near an integer, rounding may change the truncated value.
    comparable = np.abs(points - np.round(points)) > 1e-7
    assert comparable.mean() > 0.999
    np.testing.assert_array_equal(alignment.landmarks.numpy()[comparable], np.trunc(points)[comparable])


def test_truncates_landmarks_toward_zero():
    landmarks = photo_faces(1, 3)[1]
    landmarks[0, 0] = [-500, -500]
    alignment = align(torch.from_numpy(landmarks), 112, 2.5)
    exact = oracles.affine(landmarks[0]) @ [-500, -500, 1]
    assert (exact < -1).all()
    np.testing.assert_array_equal(alignment.landmarks[0, 0], np.ceil(exact))


@pytest.mark.parametrize(("face_size", "box_enlarge"), [(96, 2.5), (224, 3.0)])
def test_other_face_sizes_and_boxes_match_oracle(face_size: int, box_enlarge: float):
    landmarks = photo_faces(5, 4)[1]
    alignment = align(torch.from_numpy(landmarks), face_size, box_enlarge)
    expected = [oracles.affine(face, face_size, box_enlarge) for face in landmarks]
    np.testing.assert_allclose(alignment.affine.numpy(), expected, rtol=1e-9, atol=1e-9)


def test_anchors_are_centred_in_aligned_face():
    """The anchors' box is centred, and its larger side is the face's side divided by `box_enlarge`."""
    landmarks = photo_faces(1, 5)[1]
    matrix = align(torch.from_numpy(landmarks), 112, 2.5).affine[0].numpy()
    points = landmarks[0].astype(float)
    anchors = np.stack([points[36:42].mean(0), points[42:48].mean(0), points[30], points[48], points[54]])
    aligned = anchors @ matrix[:, :2].T + matrix[:, 2]
    assert aligned[0, 1] == pytest.approx(aligned[1, 1])
    np.testing.assert_allclose((aligned.min(0) + aligned.max(0)) / 2, 111 / 2)
    assert np.ptp(aligned, axis=0).max() == pytest.approx(111 / 2.5)


def test_face_has_same_bits_alone_and_in_batch():
    landmarks = torch.from_numpy(np.concatenate([photo_faces(32, 6)[1], extreme_landmarks(32, 7)]))
    together = align(landmarks, 112, 2.5)
    for face in range(len(landmarks)):
        alone = align(landmarks[face : face + 1], 112, 2.5)
        assert torch.equal(alone.affine[0], together.affine[face])
        assert torch.equal(alone.landmarks[0], together.landmarks[face])
