"""Face crops, compared with py-feat's algorithm in torch and with values calculated by hand."""

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage.data import astronaut

from triton_face_client.video.crops import crop_landmarks, cut_faces, landmark_boxes


def enlarged_boxes(boxes: torch.Tensor, enlarge: float) -> torch.Tensor:
    """Enlarge boxes x1, y1, x2, y2 about their centres."""
    centre = torch.stack([boxes[:, 0] + boxes[:, 2], boxes[:, 1] + boxes[:, 3]], dim=1) / 2
    sides = torch.stack([boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]], dim=1) * enlarge
    return torch.cat([centre - sides / 2, centre + sides / 2], dim=1)


def grid_sample_crops(
    image: np.ndarray, boxes: np.ndarray, size: int = 112, enlarge: float = 1.2
) -> np.ndarray:
    """Cut faces as py-feat does: `grid_sample` with positions normalized by W - 1 and H - 1."""
    height, width = image.shape[:2]
    frame = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    corners = enlarged_boxes(torch.from_numpy(np.float32(boxes)), enlarge)
    steps = (torch.arange(size).float() + 0.5) / size
    faces = []
    for x1, y1, x2, y2 in corners:
        x = 2 * (steps * (x2 - x1) + x1) / (width - 1) - 1
        y = 2 * (steps * (y2 - y1) + y1) / (height - 1) - 1
        grid = torch.stack([x.expand(size, size), y[:, None].expand(size, size)], dim=-1)
        faces.append(F.grid_sample(frame, grid[None], align_corners=False, padding_mode="zeros")[0])
    return torch.stack(faces).numpy()


def noise_image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (height, width, 3), dtype=np.uint8)


def scattered_boxes(image: np.ndarray, count: int) -> np.ndarray:
    """Return boxes x1, y1, x2, y2 of 0.007 to 2800 pixels, inside, across and outside the image."""
    generator = np.random.default_rng(6)
    centre = generator.uniform(-0.3, 1.3, (count, 2)) * [image.shape[1], image.shape[0]]
    sides = generator.choice([0.01, 1, 8, 60, 300, 2000], (count, 2)) * generator.uniform(
        0.7, 1.4, (count, 2)
    )
    return np.concatenate([centre - sides / 2, centre + sides / 2], axis=1)


@pytest.mark.parametrize(
    "image",
    [astronaut(), noise_image(270, 481), noise_image(41, 97), noise_image(3, 2), noise_image(1080, 1920)],
    ids=["photograph", "noise", "small", "tiny", "1080p"],
)
@pytest.mark.parametrize(("size", "enlarge"), [(112, 1.2), (224, 1.1), (9, 1.0)])
def test_crops_equal_grid_sample(image: np.ndarray, size: int, enlarge: float):
    boxes = scattered_boxes(image, 30)
    faces = cut_faces(image, boxes, size, enlarge)
    expected = grid_sample_crops(image, boxes, size, enlarge)
    assert faces.dtype == np.float32
    assert expected.any(axis=(1, 2, 3)).sum() >= 5
    np.testing.assert_allclose(faces, expected, rtol=0, atol=1e-6)


def test_pixels_have_the_positions_of_grid_sample():
    """In an image whose brightness is x, crop pixels have the brightness of their position.

    Pixel i of a box from 20 to 76 lies at 20 + (i + 0.5) / 2. `grid_sample` scales this by W / (W - 1),
    because py-feat normalizes by W - 1, and subtracts half a pixel.
    """
    ramp = np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None], (120, 200, 3))
    (face,) = cut_faces(ramp, np.array([[20, 30, 76, 70]]), enlarge=1.0)
    positions = 20 + (np.arange(112) + 0.5) / 2
    expected = np.broadcast_to(positions * 200 / 199 - 0.5, (3, 112, 112))
    np.testing.assert_allclose(face * 255, expected, atol=1e-3)


def test_crops_keep_axes_and_channels():
    image = np.zeros((100, 100, 3), dtype=np.uint8)
    image[:50, :, 0] = 255
    image[:, 50:, 2] = 255
    (face,) = cut_faces(image, np.array([[20, 20, 80, 80]]))
    red, green, blue = face
    assert (red[:50] == 1).all()
    assert (red[62:] == 0).all()
    assert (green == 0).all()
    assert (blue[:, :50] == 0).all()
    assert (blue[:, 62:] == 1).all()


def test_boxes_are_enlarged_about_their_centre():
    image = noise_image(100, 100)
    expected = cut_faces(image, np.array([[28, 38, 76, 74]]), enlarge=1.0)
    np.testing.assert_allclose(cut_faces(image, np.array([[32, 41, 72, 71]])), expected, atol=1e-4)


def test_pixels_outside_the_image_are_black():
    white = np.full((60, 80, 3), 255, dtype=np.uint8)
    boxes = np.array([[-40, 10, 40, 50], [90, 0, 150, 60], [0, 61.5, 80, 200]])
    across, beside, below = cut_faces(white, boxes, enlarge=1.0)
    assert (across[:, :, :55] == 0).all()
    np.testing.assert_allclose(across[:, :, 58:], 1, atol=1e-6)
    assert (beside == 0).all()
    assert (below == 0).all()


def test_edge_fades_over_one_pixel():
    """Left of the image's first pixel, its bilinear weight falls from 1 to 0 within one pixel."""
    white = np.full((11, 11, 3), 255, dtype=np.uint8)
    (face,) = cut_faces(white, np.array([[-0.5, 2, 1.5, 8]]), size=4, enlarge=1.0)
    positions = (-0.5 + (np.arange(4) + 0.5) / 2) * 11 / 10 - 0.5
    np.testing.assert_allclose(face[0, 1], np.clip(positions + 1, 0, 1), atol=1e-6)


@pytest.mark.parametrize(
    "box",
    [
        [np.nan] * 4, [np.inf] * 4, [-np.inf, 0, np.inf, 9], [1e300, 0, 2e300, 9], [1e9, 1e9, 2e9, 2e9],
        [-3e38, -3e38, 3e38, 3e38],
    ],
)  # fmt: skip
@pytest.mark.parametrize("shape", [(50, 70), (1, 70), (50, 1)])
def test_invalid_boxes_give_black_without_warnings(box: list[float], shape: tuple[int, int]):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        faces = cut_faces(noise_image(*shape), np.array([box]))
        crop_landmarks(np.zeros((1, 68, 2)), np.array([box]))
    assert (faces == 0).all()


@pytest.mark.parametrize("box", [[30, 20, 30, 40], [30, 20, 50, 20], [30, 20, 30, 20], [50, 40, 30, 20]])
def test_boxes_without_extent_equal_grid_sample(box: list[float]):
    image = noise_image(60, 90)
    np.testing.assert_allclose(
        cut_faces(image, np.array([box])), grid_sample_crops(image, np.array([box])), atol=1e-6
    )


def test_image_views_give_the_same_crops_as_copies():
    """The view has gaps between its rows, and a negative stride from BGR to RGB."""
    view = noise_image(100, 160)[10:70, 20:140, ::-1]
    boxes = scattered_boxes(view, 8)
    np.testing.assert_array_equal(cut_faces(view, boxes), cut_faces(view.copy(), boxes))


def test_no_boxes_give_no_crops():
    assert cut_faces(noise_image(20, 20), np.zeros((0, 4))).shape == (0, 3, 112, 112)
    assert crop_landmarks(np.zeros((0, 68, 2)), np.zeros((0, 4))).shape == (0, 68, 2)
    assert landmark_boxes(np.zeros((0, 68, 2))).shape == (0, 4)


def test_landmarks_refer_to_the_rounded_box():
    """Width 10.4 to 60.4 is enlarged to 5.4 to 65.4 and rounded to 5 to 65; height 21 to 61 to 17 to 65."""
    landmarks = np.full((1, 68, 2), (35.0, 41.0))
    landmarks[0, 3] = 5, 17
    landmarks[0, 4] = 65, 65
    landmarks[0, 5] = 20, 29
    points = crop_landmarks(landmarks, np.array([[10.4, 21, 60.4, 61]]))
    assert points.dtype == np.float32
    np.testing.assert_allclose(points[0, :6], [[56, 56]] * 3 + [[0, 0], [112, 112], [28, 28]], atol=1e-5)
    np.testing.assert_allclose(crop_landmarks(landmarks, np.array([[10.4, 21, 60.4, 61]]), 224), 2 * points)


def test_halves_are_rounded_to_even():
    landmarks = np.full((1, 68, 2), (12.0, 13.0))
    points = crop_landmarks(landmarks, np.array([[2.5, 3.5, 12.5, 13.5]]), 10, enlarge=1.0)
    np.testing.assert_allclose(points[0, 0], [10, 9])


def test_crop_landmarks_inverts_pyfeat_mapping():
    """py-feat maps crop landmarks x in [0, 1] to left + x * width of the rounded box."""
    boxes = np.random.default_rng(7).uniform(0, 300, (20, 4))
    boxes[:, 2:] = boxes[:, :2] + np.random.default_rng(8).uniform(20, 400, (20, 2))
    landmarks = np.random.default_rng(9).uniform(-50, 700, (20, 68, 2))
    fractions = torch.from_numpy(crop_landmarks(landmarks, boxes)).double() / 112
    corners = enlarged_boxes(torch.from_numpy(np.float32(boxes)), 1.2).round().double()
    restored = corners[:, None, :2] + fractions * (corners[:, None, 2:] - corners[:, None, :2])
    np.testing.assert_allclose(restored.numpy(), landmarks, atol=2e-3)


def test_box_without_extent_counts_as_one_pixel():
    landmarks = np.full((1, 68, 2), (31.0, 22.0))
    points = crop_landmarks(landmarks, np.array([[30, 20, 30, 20]]), 112)
    np.testing.assert_array_equal(points[0, 0], [112, 224])


def test_boxes_bound_the_landmarks():
    landmarks = np.random.default_rng(10).uniform(0, 100, (3, 68, 2))
    landmarks[1, 7] = np.nan
    boxes = landmark_boxes(landmarks)
    for face in (0, 2):
        x, y = landmarks[face].T
        assert boxes[face].tolist() == [x.min(), y.min(), x.max(), y.max()]
    assert np.isnan(boxes[1]).all()
