"""Conversion of MediaPipe face meshes: layouts, units, errors, and the anatomy of the 68 landmarks."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from export.pose.training import head
from triton_face_client import landmarks as landmarks_module
from triton_face_client.landmarks import MEDIAPIPE_TO_68, from_mediapipe

ROOT = Path(__file__).parents[2]
VERTICES = list(MEDIAPIPE_TO_68)
# Left and right in the image.
LEFT_EYE, RIGHT_EYE = slice(36, 42), slice(42, 48)


def each_mesh_size(test: Callable) -> Callable:
    """Parametrize a test with 478 and 468 vertices, with (x, y) and (x, y, z)."""
    return pytest.mark.parametrize("vertices", [478, 468])(pytest.mark.parametrize("axes", [2, 3])(test))


def random_meshes(count: int, vertices: int = 478, axes: int = 3) -> np.ndarray:
    """Return random meshes, float64 ``[count, vertices, axes]``, from 0 to 1."""
    return np.random.default_rng(5).uniform(0, 1, (count, vertices, axes))


@pytest.fixture(scope="module")
def canonical() -> np.ndarray:
    """Return the 68 points of MediaPipe's canonical face, float64 ``[68, 2]``, (x, y), y down."""
    return from_mediapipe(head.mean_mesh())


@each_mesh_size
def test_selects_the_vertices_of_several_faces(vertices: int, axes: int) -> None:
    points = random_meshes(4, vertices, axes)
    converted = from_mediapipe(points)
    assert converted.shape == (4, 68, 2)
    for point, vertex in enumerate(MEDIAPIPE_TO_68):
        np.testing.assert_array_equal(converted[:, point], points[:, vertex, :2])


@each_mesh_size
def test_accepts_one_face(vertices: int, axes: int) -> None:
    points = random_meshes(1, vertices, axes)
    np.testing.assert_array_equal(from_mediapipe(points[0]), from_mediapipe(points)[0])


@each_mesh_size
def test_accepts_flat_rows(vertices: int, axes: int) -> None:
    points = random_meshes(3, vertices, axes)
    rows = np.stack([[number for vertex in face for number in vertex] for face in points])
    assert rows.shape == (3, vertices * axes)
    np.testing.assert_array_equal(from_mediapipe(rows), from_mediapipe(points))
    np.testing.assert_array_equal(from_mediapipe(rows[0]), from_mediapipe(points[0]))


@each_mesh_size
def test_accepts_no_faces(vertices: int, axes: int) -> None:
    assert from_mediapipe(np.empty((0, vertices, axes))).shape == (0, 68, 2)
    assert from_mediapipe(np.empty((0, vertices * axes))).shape == (0, 68, 2)


def test_accepts_rows_by_axis_after_the_documented_reshape() -> None:
    """Each row has all x, then all y, then all z."""
    points = random_meshes(2)
    rows = np.concatenate([points[..., axis] for axis in range(3)], axis=1)
    converted = from_mediapipe(rows.reshape(-1, 3, 478).swapaxes(1, 2))
    np.testing.assert_array_equal(converted, from_mediapipe(points))


def test_scales_normalized_coordinates() -> None:
    points = random_meshes(2)
    converted = from_mediapipe(points, image_size=(640, 360))
    np.testing.assert_allclose(converted, points[:, VERTICES, :2] * [640, 360])


@pytest.mark.parametrize("image_size", [None, (20, 30)])
def test_does_not_change_its_argument(image_size: tuple[int, int] | None) -> None:
    points = random_meshes(2)
    before = points.copy()
    converted = from_mediapipe(points, image_size=image_size)
    converted[:] = -1.0
    np.testing.assert_array_equal(points, before)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("image_size", [None, (640, 360)])
def test_keeps_floating_types(dtype: type, image_size: tuple[int, int] | None) -> None:
    assert from_mediapipe(random_meshes(2).astype(dtype), image_size=image_size).dtype == dtype


def test_converts_integers_to_floating() -> None:
    points = (1000 * random_meshes(2)).astype(np.int32)
    converted = from_mediapipe(points)
    assert converted.dtype == np.float64
    np.testing.assert_array_equal(converted, points[:, VERTICES, :2])
    assert from_mediapipe(torch.from_numpy(points)).dtype == torch.get_default_dtype()


def test_accepts_nested_lists() -> None:
    points = random_meshes(2)
    np.testing.assert_array_equal(from_mediapipe(points.tolist()), from_mediapipe(points))


def test_keeps_nan() -> None:
    points = random_meshes(2)
    points[0] = np.nan
    converted = from_mediapipe(points, image_size=(640, 360))
    assert np.isnan(converted[0]).all()
    assert np.isfinite(converted[1]).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("image_size", [None, (640, 360)])
def test_accepts_tensors(dtype: torch.dtype, flat: bool, image_size: tuple[int, int] | None) -> None:
    points = torch.from_numpy(random_meshes(3)).to(dtype)
    converted = from_mediapipe(points.reshape(3, -1) if flat else points, image_size=image_size)
    assert isinstance(converted, torch.Tensor)
    assert converted.dtype == dtype
    expected = points[:, VERTICES, :2] * torch.tensor(image_size or (1, 1), dtype=dtype)
    torch.testing.assert_close(converted, expected, rtol=0, atol=0)


@pytest.mark.parametrize("image_size", [None, (640, 360)])
def test_is_differentiable(image_size: tuple[int, int] | None) -> None:
    points = torch.from_numpy(random_meshes(1)).requires_grad_()
    from_mediapipe(points, image_size=image_size).sum().backward()
    vertices = points.grad.abs().sum(dim=(0, 2)).nonzero().flatten()
    assert vertices.tolist() == sorted(MEDIAPIPE_TO_68)


def test_does_not_import_torch() -> None:
    """The module runs without its package, in a process that has not imported torch."""
    code = (
        "import runpy, sys; import numpy as np; "
        f"module = runpy.run_path({landmarks_module.__file__!r}); "
        "print(module['from_mediapipe'](np.zeros((2, 478, 3))).shape, 'torch' in sys.modules)"
    )
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert completed.stdout.strip() == "(2, 68, 2) False"


@pytest.mark.parametrize(
    "shape",
    [
        *((), (2,), (478,)),
        *((478, 1), (478, 4), (477, 3), (468, 68), (2, 478), (3, 478), (4, 957)),
        *((5, 68, 2), (2, 3, 478), (1, 1, 956), (1, 2, 478, 3)),
    ],
)
@pytest.mark.parametrize("library", [np, torch])
def test_rejects_other_shapes(shape: tuple[int, ...], library: object) -> None:
    with pytest.raises(
        ValueError, match=r"no MediaPipe face meshes: .*478 or 468.*936, 956, 1404, 1434"
    ) as error:
        from_mediapipe(library.zeros(shape))
    assert f"of shape {list(shape)} " in str(error.value)


@pytest.mark.parametrize("dtype", [object, str, bool, complex])
def test_rejects_other_types(dtype: type) -> None:
    with pytest.raises(ValueError, match="points must be real numbers, not"):
        from_mediapipe(np.zeros((478, 2)).astype(dtype))


@pytest.mark.parametrize(
    "image_size", [(640,), (640, 360, 3), (0, 360), (640, -1), (640, np.nan), (np.inf, 1), 640, "ab"]
)
def test_rejects_other_image_sizes(image_size: object) -> None:
    with pytest.raises(
        ValueError, match=r"image_size must be the image's \(width, height\) in pixels, not"
    ) as error:
        from_mediapipe(random_meshes(1), image_size=image_size)
    assert repr(image_size) in str(error.value)


def test_vertices_are_distinct() -> None:
    assert len(MEDIAPIPE_TO_68) == len(set(MEDIAPIPE_TO_68)) == 68
    assert set(MEDIAPIPE_TO_68) <= set(range(468))


def test_map_is_symmetric(canonical: np.ndarray) -> None:
    mirrored = canonical[list(head.MIRRORED_LANDMARK)] * [-1.0, 1.0]
    np.testing.assert_allclose(mirrored, canonical, atol=1e-5)


def test_jaw_runs_from_left_over_the_chin_to_right(canonical: np.ndarray) -> None:
    jaw = canonical[:17]
    assert (np.diff(jaw[:, 0]) > 0).all()
    assert (np.diff(jaw[:9, 1]) > 0).all()
    assert canonical[:, 1].argmax() == 8
    assert canonical[:, 0].argmin() == 0
    assert canonical[:, 0].argmax() == 16


def test_brows_run_from_left_to_right_above_the_eyes(canonical: np.ndarray) -> None:
    brows = canonical[17:27]
    assert (np.diff(brows[:, 0]) > 0).all()
    assert brows[:, 1].max() < canonical[36:48, 1].min()
    assert brows[4, 0] < 0 < brows[5, 0]


def test_nose_runs_down_the_bridge_and_from_left_to_right_below(canonical: np.ndarray) -> None:
    bridge, below = canonical[27:31], canonical[31:36]
    np.testing.assert_allclose(bridge[:, 0], 0.0, atol=1e-5)
    assert (np.diff(bridge[:, 1]) > 0).all()
    assert (np.diff(below[:, 0]) > 0).all()
    assert below[:, 1].min() > bridge[:, 1].max()
    assert below[:, 1].argmax() == 2


@pytest.mark.parametrize(("eye", "side"), [(LEFT_EYE, -1), (RIGHT_EYE, 1)])
def test_eyes_run_clockwise_from_the_left_corner(canonical: np.ndarray, eye: slice, side: int) -> None:
    points = canonical[eye]
    assert (np.sign(points[:, 0]) == side).all()
    assert points[:, 0].argmin() == 0
    assert points[:, 0].argmax() == 3
    assert points[1, 0] < points[2, 0]
    assert points[5, 0] < points[4, 0]
    assert points[[1, 2], 1].max() < points[[4, 5], 1].min()


def test_lips_run_clockwise_from_the_left_corner(canonical: np.ndarray) -> None:
    outer, inner = canonical[48:60], canonical[60:68]
    assert (np.diff(outer[:7, 0]) > 0).all()
    assert (np.diff(outer[6:, 0]) < 0).all()
    assert (np.diff(inner[:5, 0]) > 0).all()
    assert (np.diff(inner[4:, 0]) < 0).all()
    assert outer[0, 0] < inner[0, 0]
    assert inner[4, 0] < outer[6, 0]
    # From the top: outer and inner edge of the upper lip, inner and outer edge of the lower one.
    middle = [outer[3, 1], inner[2, 1], inner[6, 1], outer[9, 1]]
    assert middle == sorted(middle)
    assert middle[0] > canonical[31:36, 1].max()


def test_measured_distances_belong_to_the_current_map() -> None:
    """The distances in docs/landmarks.md are from this measurement. Repeat it after a change of the map."""
    measurement = json.loads((ROOT / "benchmarks" / "results" / "landmark_map.json").read_text())
    assert tuple(point["vertex"] for point in measurement["points"]) == MEDIAPIPE_TO_68
