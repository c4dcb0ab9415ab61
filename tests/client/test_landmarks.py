"""The 68 landmarks of MediaPipe face meshes: layouts, units, errors, and the map's anatomy."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from export.pose.training import head
from triton_face_client import landmarks as module
from triton_face_client.landmarks import MEDIAPIPE_TO_68, from_mediapipe

ROOT = Path(__file__).parents[2]
VERTICES = list(MEDIAPIPE_TO_68)
LEFT_EYE, RIGHT_EYE = slice(36, 42), slice(42, 48)


def every_mesh(test: Callable) -> Callable:
    """Run a test on 478 and on 468 vertices, with x, y and with x, y, z."""
    return pytest.mark.parametrize("vertices", [478, 468])(pytest.mark.parametrize("axes", [2, 3])(test))


def meshes(count: int, vertices: int = 478, axes: int = 3) -> np.ndarray:
    """Return `count` random meshes, float64 ``[count, vertices, axes]``."""
    return np.random.default_rng(5).uniform(0, 1, (count, vertices, axes))


@pytest.fixture(scope="module")
def canonical() -> np.ndarray:
    """Return the canonical face's 68 points, float64 ``[68, 2]``."""
    return from_mediapipe(head.mean_mesh())


@every_mesh
def test_faces(vertices: int, axes: int) -> None:
    points = meshes(4, vertices, axes)
    found = from_mediapipe(points)
    assert found.shape == (4, 68, 2)
    for point, vertex in enumerate(MEDIAPIPE_TO_68):
        np.testing.assert_array_equal(found[:, point], points[:, vertex, :2])


@every_mesh
def test_one_face(vertices: int, axes: int) -> None:
    points = meshes(1, vertices, axes)
    np.testing.assert_array_equal(from_mediapipe(points[0]), from_mediapipe(points)[0])


@every_mesh
def test_rows(vertices: int, axes: int) -> None:
    points = meshes(3, vertices, axes)
    rows = np.stack([[number for vertex in face for number in vertex] for face in points])
    assert rows.shape == (3, vertices * axes)
    np.testing.assert_array_equal(from_mediapipe(rows), from_mediapipe(points))
    np.testing.assert_array_equal(from_mediapipe(rows[0]), from_mediapipe(points[0]))


@every_mesh
def test_no_face(vertices: int, axes: int) -> None:
    assert from_mediapipe(np.empty((0, vertices, axes))).shape == (0, 68, 2)
    assert from_mediapipe(np.empty((0, vertices * axes))).shape == (0, 68, 2)


def test_rows_by_axis_as_documented() -> None:
    """Check the reshape that the docstring gives for tables with all x first."""
    points = meshes(2)
    rows = np.concatenate([points[..., axis] for axis in range(3)], axis=1)
    found = from_mediapipe(rows.reshape(-1, 3, 478).swapaxes(1, 2))
    np.testing.assert_array_equal(found, from_mediapipe(points))


def test_normalized_coordinates() -> None:
    points = meshes(2)
    found = from_mediapipe(points, image_size=(640, 360))
    np.testing.assert_allclose(found, points[:, VERTICES, :2] * [640, 360])


@pytest.mark.parametrize("image_size", [None, (20, 30)])
def test_argument_is_left_alone(image_size: tuple[int, int] | None) -> None:
    points = meshes(2)
    before = points.copy()
    found = from_mediapipe(points, image_size=image_size)
    found[:] = -1.0
    np.testing.assert_array_equal(points, before)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("image_size", [None, (640, 360)])
def test_floating_type_is_kept(dtype: type, image_size: tuple[int, int] | None) -> None:
    assert from_mediapipe(meshes(2).astype(dtype), image_size=image_size).dtype == dtype


def test_integers_become_floating() -> None:
    points = (1000 * meshes(2)).astype(np.int32)
    found = from_mediapipe(points)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, points[:, VERTICES, :2])
    assert from_mediapipe(torch.from_numpy(points)).dtype == torch.get_default_dtype()


def test_nested_lists() -> None:
    points = meshes(2)
    np.testing.assert_array_equal(from_mediapipe(points.tolist()), from_mediapipe(points))


def test_nan_stays() -> None:
    points = meshes(2)
    points[0] = np.nan
    found = from_mediapipe(points, image_size=(640, 360))
    assert np.isnan(found[0]).all()
    assert np.isfinite(found[1]).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("image_size", [None, (640, 360)])
def test_tensors(dtype: torch.dtype, flat: bool, image_size: tuple[int, int] | None) -> None:
    points = torch.from_numpy(meshes(3)).to(dtype)
    found = from_mediapipe(points.reshape(3, -1) if flat else points, image_size=image_size)
    assert isinstance(found, torch.Tensor)
    assert found.dtype == dtype
    expected = points[:, VERTICES, :2] * torch.tensor(image_size or (1, 1), dtype=dtype)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("image_size", [None, (640, 360)])
def test_gradients_pass(image_size: tuple[int, int] | None) -> None:
    points = torch.from_numpy(meshes(1)).requires_grad_()
    from_mediapipe(points, image_size=image_size).sum().backward()
    touched = points.grad.abs().sum(dim=(0, 2)).nonzero().flatten()
    assert touched.tolist() == sorted(MEDIAPIPE_TO_68)


def test_torch_is_not_needed() -> None:
    """Load the module by itself, where torch must not come along."""
    code = (
        "import runpy, sys; import numpy as np; "
        f"run = runpy.run_path({module.__file__!r}); "
        "print(run['from_mediapipe'](np.zeros((2, 478, 3))).shape, 'torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "(2, 68, 2) False"


@pytest.mark.parametrize(
    "shape",
    [
        *((), (2,), (478,)),
        *((478, 1), (478, 4), (477, 3), (468, 68), (2, 478), (3, 478), (4, 957)),
        *((5, 68, 2), (2, 3, 478), (1, 1, 956), (1, 2, 478, 3)),
    ],
)
@pytest.mark.parametrize("library", [np, torch])
def test_other_shapes_are_refused(shape: tuple[int, ...], library: object) -> None:
    with pytest.raises(
        ValueError, match=r"no MediaPipe face meshes: .*478 or 468.*936, 956, 1404, 1434"
    ) as error:
        from_mediapipe(library.zeros(shape))
    assert f"of shape {list(shape)} " in str(error.value)


@pytest.mark.parametrize("dtype", [object, str, bool, complex])
def test_other_types_are_refused(dtype: type) -> None:
    with pytest.raises(ValueError, match="points must be real numbers, not"):
        from_mediapipe(np.zeros((478, 2)).astype(dtype))


@pytest.mark.parametrize(
    "image_size", [(640,), (640, 360, 3), (0, 360), (640, -1), (640, np.nan), (np.inf, 1), 640, "ab"]
)
def test_other_image_sizes_are_refused(image_size: object) -> None:
    with pytest.raises(
        ValueError, match=r"image_size must be the image's \(width, height\) in pixels, not"
    ) as error:
        from_mediapipe(meshes(1), image_size=image_size)
    assert repr(image_size) in str(error.value)


def test_distinct_vertices() -> None:
    assert len(MEDIAPIPE_TO_68) == len(set(MEDIAPIPE_TO_68)) == 68
    assert set(MEDIAPIPE_TO_68) <= set(range(468))


def test_mirrored_face(canonical: np.ndarray) -> None:
    mirrored = canonical[list(head.MIRRORED_LANDMARK)] * [-1.0, 1.0]
    np.testing.assert_allclose(mirrored, canonical, atol=1e-5)


def test_jaw(canonical: np.ndarray) -> None:
    jaw = canonical[:17]
    assert (np.diff(jaw[:, 0]) > 0).all()
    assert (np.diff(jaw[:9, 1]) > 0).all()
    assert canonical[:, 1].argmax() == 8
    assert canonical[:, 0].argmin() == 0
    assert canonical[:, 0].argmax() == 16


def test_brows(canonical: np.ndarray) -> None:
    brows = canonical[17:27]
    assert (np.diff(brows[:, 0]) > 0).all()
    assert brows[:, 1].max() < canonical[36:48, 1].min()
    assert brows[4, 0] < 0 < brows[5, 0]


def test_nose(canonical: np.ndarray) -> None:
    bridge, under = canonical[27:31], canonical[31:36]
    np.testing.assert_allclose(bridge[:, 0], 0.0, atol=1e-5)
    assert (np.diff(bridge[:, 1]) > 0).all()
    assert (np.diff(under[:, 0]) > 0).all()
    assert under[:, 1].min() > bridge[:, 1].max()
    assert under[:, 1].argmax() == 2


@pytest.mark.parametrize(("eye", "side"), [(LEFT_EYE, -1), (RIGHT_EYE, 1)])
def test_eyes(canonical: np.ndarray, eye: slice, side: int) -> None:
    points = canonical[eye]
    assert (np.sign(points[:, 0]) == side).all()
    assert points[:, 0].argmin() == 0
    assert points[:, 0].argmax() == 3
    assert points[1, 0] < points[2, 0]
    assert points[5, 0] < points[4, 0]
    assert points[[1, 2], 1].max() < points[[4, 5], 1].min()


def test_lips(canonical: np.ndarray) -> None:
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


@pytest.fixture(scope="module")
def record() -> dict:
    """Return the measurement that is in the repository."""
    return json.loads((ROOT / "benchmarks" / "results" / "landmark_map.json").read_text())


def test_record_is_of_this_map(record: dict) -> None:
    assert [point["point"] for point in record["points"]] == list(range(68))
    assert tuple(point["vertex"] for point in record["points"]) == MEDIAPIPE_TO_68


def test_docs_have_the_record(record: dict) -> None:
    text = (ROOT / "docs" / "landmarks.md").read_text()
    for point in record["points"]:
        figures = rf"{point['mean']:.3f} \| {point['p90']:.3f}"
        row = rf"\| {point['point']} \| [^|]+ \| {point['vertex']} \| {figures} \|"
        assert len(re.findall(row, text)) == 1, row
    for name, figures in record["regions"].items():
        assert f"| {name} | {figures['mean']:.3f} | {figures['p90']:.3f} |" in text
    assert f"{record['faces']} faces" in text
