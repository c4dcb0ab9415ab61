"""Warp, compared with bilinear sampling in float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import align_mask.warp as warp_module
from align_mask.warp import warp
from tests.support import oracles
from tests.support.face_data import extreme_landmarks, photo_faces


def affines(landmarks: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.float32([oracles.affine(face) for face in landmarks]))


@pytest.mark.parametrize("size", [(112, 112), (97, 131), (240, 180)])
def test_pixels_match_oracle(size: tuple[int, int]):
    frames, landmarks = photo_faces(12, 11, size)
    matrices = affines(landmarks)
    faces = warp(torch.from_numpy(frames), matrices, 112, 128.0).numpy()
    filled = 0
    for frame, matrix, face in zip(frames, matrices.numpy(), faces, strict=True):
        expected, certain = oracles.warped(frame, matrix)
        assert certain.mean() > 0.99
        np.testing.assert_allclose(face[:, certain], expected[:, certain], atol=2e-4)
        filled += (face == 128).sum()
    assert filled > 0


def test_face_outside_frame_has_only_fill_values():
    frames, landmarks = photo_faces(1, 12)
    faces = warp(torch.from_numpy(frames), affines(landmarks + 5000), 112, 128.0)
    assert (faces == 128).all()


def test_fill_value_is_configurable():
    frames, landmarks = photo_faces(3, 17)
    with_128, with_7 = (
        warp(torch.from_numpy(frames), affines(landmarks), 112, fill) for fill in (128.0, 7.0)
    )
    filled = with_128 == 128
    assert filled.any()
    assert (with_7[filled] == 7).all()
    assert torch.equal(with_7[~filled], with_128[~filled])


def test_border_of_frame_counts_as_inside():
    """At |g| = 1 in x and y, the weight of the corner pixel is a quarter; the zero padding has the rest."""
    frame = torch.full((1, 3, 32, 32), 4.0)
    half_out = torch.tensor([[[1.0, 0, 0.5], [0, 1, 0.5]]])
    face = warp(frame, half_out, 32, 128.0)
    assert (face[0, :, 0, 0] == 1).all()
    assert (face[0, :, 1:, 1:] == 4).all()


def test_faster_product_is_used_only_with_reference_bits(monkeypatch: pytest.MonkeyPatch):
    """The comparison detects coordinates that differ by one ulp."""
    warp_module.has_reference_bits.cache_clear()
    changed = warp_module._aligned_coordinates(48).clone()
    changed[0] = torch.nextafter(changed[0], torch.tensor(2.0))
    monkeypatch.setattr(warp_module, "_aligned_coordinates", lambda _face_size: changed)
    assert not warp_module.has_reference_bits(48)
    to_frame = torch.eye(2, 3).unsqueeze(0)
    grid = F.affine_grid(to_frame, [1, 1, 48, 48], align_corners=False).permute(0, 3, 1, 2)
    assert torch.equal(warp_module._sampling_grid(to_frame, 48), grid)
    warp_module.has_reference_bits.cache_clear()


def test_identity_and_half_pixel_shift():
    """The identity returns the frame; a shift by half a pixel returns the mean of neighbours."""
    frame = torch.rand((1, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    identity = torch.tensor([[[1.0, 0, 0], [0, 1, 0]]])
    np.testing.assert_allclose(warp(frame, identity, 32, 128.0), frame, atol=1e-5)
    shifted = torch.tensor([[[1.0, 0, -0.5], [0, 1, 0]]])
    half_way = (frame[..., :-1] + frame[..., 1:]) / 2
    np.testing.assert_allclose(warp(frame, shifted, 32, 128.0)[..., :-1], half_way, atol=1e-5)


def test_face_has_same_bits_alone_and_in_batch():
    frames = torch.from_numpy(photo_faces(64, 13)[0])
    matrices = affines(np.concatenate([photo_faces(32, 13)[1], extreme_landmarks(32, 14)]))
    together = warp(frames, matrices, 112, 128.0)
    for face in range(len(frames)):
        alone = warp(frames[face : face + 1], matrices[face : face + 1], 112, 128.0)
        assert torch.equal(alone[0], together[face])


def reference_warp(frames: torch.Tensor, affine: torch.Tensor) -> torch.Tensor:
    """Warp as in SPEC section 2, with PyTorch's own grid and torch.where for the fill value."""

    def pixels_of_normalized(height: int, width: int) -> torch.Tensor:
        rows = [[width / 2, 0, (width - 1) / 2], [0, height / 2, (height - 1) / 2], [0, 0, 1]]
        return torch.tensor(rows, dtype=torch.float32)

    to_aligned = torch.cat([affine, torch.tensor([[[0.0, 0.0, 1.0]]]).expand(len(affine), 1, 3)], dim=1)
    from_pixels = torch.linalg.inv(pixels_of_normalized(112, 112))
    normalized = from_pixels @ to_aligned @ pixels_of_normalized(*frames.shape[2:])
    grid = F.affine_grid(torch.linalg.inv(normalized)[:, :2], [len(affine), 3, 112, 112], align_corners=False)
    faces = F.grid_sample(frames, grid, align_corners=False)
    return torch.where((grid.abs() <= 1).all(dim=3).unsqueeze(1), faces, 128.0)


@pytest.mark.parametrize("faster_product", [True, False])
@pytest.mark.parametrize("count", [1, 2, 5, 8, 33])
def test_bits_equal_affine_grid_and_grid_sample(
    monkeypatch: pytest.MonkeyPatch, count: int, faster_product: bool
):
    """Test each count because the BLAS selects its kernel by the count."""
    if not faster_product:
        monkeypatch.setattr(warp_module, "has_reference_bits", lambda _face_size: False)
    frames, landmarks = photo_faces(count, 15, (131, 97))
    for points in (landmarks, extreme_landmarks(count, 16)):
        matrices = affines(points)
        expected = reference_warp(torch.from_numpy(frames), matrices)
        assert torch.equal(warp(torch.from_numpy(frames), matrices, 112, 128.0), expected)
