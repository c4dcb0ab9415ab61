"""The deformable head: its mesh, its rigid fit and its expressions."""

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from export.pose.training import dataset, head
from tests.unit.pose_training.mean_head import mean_landmarks


def test_mesh_is_symmetric_and_faces_the_camera():
    mesh = head.mean_mesh()
    assert mesh.shape == (468, 3)
    reflected = mesh[head._mirror_vertices(mesh)] * [-1, 1, 1]
    np.testing.assert_allclose(reflected, mesh, atol=1e-5)
    points = mesh[list(head.LANDMARK_VERTICES)]
    assert points[:, 2].argmin() == 30, "the nose tip is nearest to the camera"
    assert points[8, 1] > points[30, 1] > points[27, 1], "y points down"
    assert points[36, 0] < 0 < points[45, 0], "landmark 36 is on the image's left"


def test_mirrored_landmarks_of_the_mean_head_coincide():
    points = mean_landmarks()
    np.testing.assert_allclose(points[list(head.MIRRORED_LANDMARK)] * [-1, 1, 1], points, atol=1e-5)


def test_deformed_heads_are_rotated_back_by_the_fit_of_the_whole_mesh(generator: torch.Generator):
    mesh, model = head.mean_mesh(), head.head_model()
    modes = np.concatenate([head._identity_modes(mesh), head._expression_modes(mesh)])
    weights = dataset._sample_weights(model, 5, generator)
    deformed = model.deform(weights).numpy()
    for row, result in zip(weights.numpy(), deformed, strict=True):
        whole = mesh + np.einsum("m,mvc->vc", row.astype(np.float64), modes)
        fit, _ = Rotation.align_vectors(whole - whole.mean(axis=0), mesh - mesh.mean(axis=0))
        assert fit.magnitude() > 1e-3, "the test needs a deformation that rotates the fit"
        expected = fit.inv().apply(whole - whole.mean(axis=0)) + mesh.mean(axis=0)
        np.testing.assert_allclose(result[:68], expected[list(head.LANDMARK_VERTICES)], atol=2e-4)


def test_expressions_move_the_landmarks_that_they_name():
    model = head.head_model()
    neutral = torch.zeros(1, len(model.point_modes))

    def displacement(name: str) -> np.ndarray:
        weights = neutral.clone()
        weights[0, model.identity_modes + head.EXPRESSIONS.index(name)] = 1.0
        return (model.deform(weights) - model.deform(neutral))[0, :68].numpy()

    opened = displacement("jaw_open")
    assert opened[66, 1] - opened[62, 1] > 1.0, "the lips part"
    assert opened[8, 1] > 0.5, "the chin drops"
    smile = displacement("smile")
    assert smile[54, 0] > 0.3, "the corners part"
    assert smile[48, 0] < -0.3, "the corners part"
    assert smile[48, 1] < smile[57, 1] - 0.3, "the corners rise"
    assert displacement("brow_raise")[19, 1] < -0.4
    closed = displacement("eyes_close")
    assert closed[37, 1] > 0.1 > -0.02 > closed[41, 1], "the lids meet"
