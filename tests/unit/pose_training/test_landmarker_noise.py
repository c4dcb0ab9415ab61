"""The simulated errors of landmarkers: their size, and the points that they move."""

import torch

from export.pose.training import camera, head, landmarker_noise
from tests.unit.pose_training.mean_head import project_mean_head


def test_hidden_jaw_points_slide_outwards_and_no_other_point_moves():
    points = head.head_model().points[None].repeat(2, 1, 1)
    angles = torch.tensor([[0.0, 1.0, 0.2], [0.0, 1.0, 0.2]])
    rotations = camera.rotation_matrices(angles)
    placed, _ = camera.place_heads(points, rotations, torch.full((2,), 80.0))
    projected = camera.project(placed)
    moved = landmarker_noise.slide_contour(projected, rotations[:, :2, 0], torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(moved[0], projected[0, :68])
    rightwards = (moved[1] - projected[1, :68]) @ rotations[1, :2, 0]
    eye_distance = (projected[1, 36] - projected[1, 45]).norm()
    assert rightwards[:8].min() < -0.05 * eye_distance, (
        "the head is turned to the image's left, so its left jaw is hidden"
    )
    assert (rightwards[:8] <= 1e-6).all()
    torch.testing.assert_close(rightwards[9:17], torch.zeros(8))
    torch.testing.assert_close(moved[1, 17:], projected[1, 17:68])
    torch.testing.assert_close(moved[1, 8], projected[1, 8])


def test_noise_has_the_documented_size_and_is_reproducible(generator: torch.Generator):
    face = torch.from_numpy(project_mean_head((0, 0, 0), None)).float().repeat(4000, 1, 1)
    eye_distance = (face[:, 36] - face[:, 45]).norm(dim=-1)
    state = generator.get_state()
    moved = landmarker_noise.add_noise(face, eye_distance, generator)
    assert torch.equal(moved, landmarker_noise.add_noise(face, eye_distance, generator.set_state(state)))
    spread = ((moved - face) / eye_distance[:, None, None]).std(dim=0)
    jitter, offset = landmarker_noise.JITTER, landmarker_noise.POINT_OFFSET
    variance = jitter**2 / 5 + offset**2 + landmarker_noise.REGION_OFFSET**2
    expected = torch.full((51, 2), variance**0.5)
    torch.testing.assert_close(spread[17:], expected, rtol=0.1, atol=0.0)
    assert (spread[:17].norm(dim=1) > 0.02).all(), "the contour is scaled and shifted along itself"


def test_jaw_points_shift_along_the_contour_together(generator: torch.Generator):
    line = torch.stack([torch.arange(17.0), torch.zeros(17)], dim=1).repeat(3000, 1, 1)
    moved = landmarker_noise._shift_along(line, torch.randn(3000, 17, generator=generator))
    assert moved[..., 1].abs().max() == 0.0
    shift = moved[..., 0] - line[..., 0]
    assert 0.25 < shift[:, :5].std() < 0.55
    correlation = torch.corrcoef(shift.T)
    assert correlation[3, 4] > 0.8, "neighbours move together"
    assert correlation[3, 13] < -0.4, "both sides move symmetrically"
