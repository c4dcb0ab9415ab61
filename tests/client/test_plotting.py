"""Face figures and contact sheets: their content, and the atomic writing of their files."""

import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy.spatial.transform import Rotation

from triton_face_client.hog_settings import HogSettings
from triton_face_client.plotting import contact_sheet
from triton_face_client.plotting.contact_sheet import MAX_FACES, SheetFace, draw_sheet, tile_columns
from triton_face_client.plotting.face_figure import draw_face
from triton_face_client.plotting.panels import cell_strengths, draw_hog, head_rotation, pose_axes
from triton_face_client.plotting.picture_files import DPI, SUFFIXES
from triton_face_client.sample_faces import drawn_face

SIZE = 112
HOG = HogSettings()


def face_outputs(seed: int) -> dict[str, np.ndarray]:
    """Return random outputs of one face, with the shapes of the service's outputs."""
    generator = np.random.default_rng(seed)
    pixels = generator.random((3, SIZE, SIZE)).astype(np.float32)
    mask = np.zeros((SIZE, SIZE), dtype=bool)
    mask[:90, 15:100] = True
    return {
        "ALIGNED_FACES": pixels,
        "MASKED_FACES": pixels * mask,
        "MASK": mask,
        "ALIGNED_LANDMARKS": (56 + 45 * drawn_face()).astype(np.int64),
        "AFFINE": np.array([[0.8, 0.1, 3], [-0.1, 0.8, 5]], dtype=np.float32),
        "HOG": generator.random(5408).astype(np.float32),
        "POSE": generator.normal(0, 0.3, 6).astype(np.float32),
    }


def faces_with_long_texts(count: int) -> list[SheetFace]:
    """Return `count` faces: the second has no features, the third no crop either; both have long texts."""
    faces = [SheetFace(i, f"film.avi, frame {i}", outputs=face_outputs(i)) for i in range(count)]
    crop = face_outputs(99)["ALIGNED_FACES"]
    faces[1:3] = [
        SheetFace(1, "$film$_" * 20, crop=crop, reason="no hull " * 40),
        SheetFace(2, "", reason="/a/very/long/path" * 20),
    ][: count - 1]
    return faces


@pytest.mark.parametrize("count", [1, 7, 12])
def test_sheet_has_a_tile_for_each_face(tmp_path: Path, count: int):
    path = tmp_path / "sheet.PNG"
    draw_sheet(path, faces_with_long_texts(count), HOG)
    assert [file.name for file in tmp_path.iterdir()] == ["sheet.PNG"]
    assert path.read_bytes().startswith(b"\x89PNG")
    picture = matplotlib.image.imread(path)[..., :3]
    columns = tile_columns(count)
    rows = -(-count // columns)
    inches = np.array(picture.shape[:2]) / DPI
    assert 2 * rows < inches[0] < 2.2 * rows + 1.6
    assert 3.5 * columns < inches[1] < 3.7 * columns + 0.2
    tops, lefts = tile_corners(rows, columns, picture.shape[0])
    for tile in range(count):
        row, column = divmod(tile, columns)
        tile_pixels = picture[tops[row] : tops[row] + 180, lefts[column] : lefts[column] + 370]
        assert len(np.unique(tile_pixels.reshape(-1, 3), axis=0)) > 50


def tile_corners(rows: int, columns: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Return top edges of the rows and left edges of the columns of tiles, in pixels.

    The legend above the tiles has no fixed height, so the tops are calculated from the sheet's bottom.
    """
    tile_height = contact_sheet.PICTURE + contact_sheet.CAPTION
    tops = height - (contact_sheet.GAP + tile_height * (rows - np.arange(rows))) * DPI
    lefts = contact_sheet.MARGIN + np.arange(columns) * (
        2 * contact_sheet.PICTURE + contact_sheet.GAP + contact_sheet.MARGIN
    )
    return np.ceil(tops).astype(int), np.ceil(lefts * DPI).astype(int)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Return a list that collects the figures of a test, which are not written."""
    saved: list[Figure] = []
    monkeypatch.setattr(contact_sheet, "save_figure", lambda figure, _path: saved.append(figure))
    return saved


@pytest.mark.parametrize("count", [1, 2, 5, 12, 30])
def test_texts_do_not_overlap_or_leave_the_sheet(tmp_path: Path, figures: list[Figure], count: int):
    wide = SheetFace(123456, "WWW_MMM_" * 10, reason="WIDE LETTERS AND NO CROP: " * 30)
    faces = [*faces_with_long_texts(count)[:-1], wide]
    draw_sheet(tmp_path / "sheet.png", faces, HOG)
    figure = figures[0]
    texts = [*figure.texts, *(text for panel in figure.axes for text in panel.texts)]
    boxes = np.array([text.get_window_extent().extents for text in texts])
    assert len(texts) == 2 + count + sum(face.outputs is None for face in faces)
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= figure.bbox.size).all()
    separate = (boxes[:, None, :2] >= boxes[None, :, 2:]).any(axis=2)
    assert (separate | separate.T | np.eye(len(boxes), dtype=bool)).all()


def test_captions_have_location_and_pose(tmp_path: Path, figures: list[Figure]):
    face = face_outputs(0)
    face["POSE"][:3] = np.radians([10, 20, 0.2])
    without_pose = {**face_outputs(1), "POSE": np.full(6, np.nan, dtype=np.float32)}
    draw_sheet(
        tmp_path / "a.png",
        [SheetFace(7, "a.avi, frame 3", outputs=face), SheetFace(8, "b", outputs=without_pose)],
        HOG,
    )
    texts = [text.get_text() for text in figures[0].texts]
    assert texts[0] == "2 faces"
    assert texts[2:] == ["row 7  ·  a.avi, frame 3\npitch −10°   yaw +20°   roll 0°", "row 8  ·  b\nno pose"]


def test_sheets_are_about_square():
    for count in range(1, 61):
        columns = tile_columns(count)
        rows = -(-count // columns)
        width = columns * 2 * contact_sheet.PICTURE
        height = rows * (contact_sheet.PICTURE + contact_sheet.CAPTION)
        assert 0.5 < width / height < 2


def test_head_rotation_follows_the_specification():
    for angles in np.random.default_rng(0).uniform(-1.5, 1.5, (20, 3)):
        expected = Rotation.from_euler("xyz", angles).as_matrix()
        np.testing.assert_allclose(head_rotation(np.array([*angles, 1, 2, 3])), expected, atol=1e-12)


def test_axes_rotate_with_the_picture():
    """A head that is tilted in the image is upright in a picture that is rotated back."""
    tilt = np.radians(30)
    pose = np.array([0, 0, tilt, 0, 0, 0])
    cos, sin = np.cos(tilt), np.sin(tilt)
    in_image = pose_axes(pose, np.eye(2))
    np.testing.assert_allclose(in_image, [[cos, sin], [-sin, cos], [0, 0]], atol=1e-12)
    rotated_back = pose_axes(pose, np.array([[cos, sin], [-sin, cos]]))
    np.testing.assert_allclose(rotated_back, [[1, 0], [0, 1], [0, 0]], atol=1e-12)


def test_nose_axis_points_where_the_head_faces():
    """A raw Roll of 30 degrees turns the head to the subject's right, the image's left."""
    nose = pose_axes(np.radians([0, 30, 0, 0, 0, 0]), np.eye(2))[2]
    np.testing.assert_allclose(nose, [-0.5, 0], atol=1e-12)


@pytest.mark.parametrize(
    ("face_size", "settings"), [(112, HOG), (100, HogSettings(9, 16, 1)), (96, HogSettings(6, 4, 3))]
)
def test_cell_strength_is_the_mean_of_its_blocks(face_size: int, settings: HogSettings):
    block, side = settings.cells_per_block, face_size // settings.pixels_per_cell
    cells = np.random.default_rng(0).random((side, side, settings.orientations))
    blocks = np.zeros((side - block + 1, side - block + 1, block, block, settings.orientations))
    for row in range(len(blocks)):
        for column in range(len(blocks)):
            blocks[row, column] = cells[row : row + block, column : column + block]
    np.testing.assert_allclose(cell_strengths(blocks.ravel(), settings, face_size), cells)


def test_strokes_follow_the_edge_in_their_cells():
    """A vertical edge in the sixth of seven columns of cells; its gradient is in bin 0 of 9."""
    settings = HogSettings(9, 16, 1)
    cells = np.zeros((7, 7, 9), dtype=np.float32)
    cells[:, 5, 0] = 1
    panel = Figure().subplots()
    draw_hog(panel, cells.ravel(), settings, 115, 1.0)
    strokes = panel.collections[0]
    visible = np.array(strokes.get_segments())[np.asarray(strokes.get_alpha()) > 0]
    np.testing.assert_allclose(visible.mean(axis=1), [(88, 8 + 16 * row) for row in range(7)])
    direction = visible[:, 1] - visible[:, 0]
    np.testing.assert_allclose(np.degrees(np.arctan2(direction[:, 1], direction[:, 0])), 100)
    assert panel.get_xlim() == (0, 115)


def test_rejects_features_of_other_settings():
    with pytest.raises(
        ValueError, match=r"has 5408 HOG features, not the 441 of HogSettings\(orientations=9"
    ):
        cell_strengths(np.zeros(5408, dtype=np.float32), HogSettings(9, 16, 1), 112)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_writes_every_format(tmp_path: Path, suffix: str):
    path = tmp_path / f"face{suffix}"
    draw_face(
        path, face_outputs(0)["ALIGNED_FACES"], 56 + 45 * drawn_face(), face_outputs(0), HOG, pixel_aspect=1.2
    )
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.stat().st_size > 1000


@pytest.mark.filterwarnings("error")
def test_draws_face_without_pose(tmp_path: Path):
    face = {**face_outputs(0), "POSE": np.full(6, np.nan, dtype=np.float32)}
    draw_face(tmp_path / "face.png", face["ALIGNED_FACES"], 56 + 45 * drawn_face(), face, HOG)
    assert (tmp_path / "face.png").exists()


@pytest.mark.filterwarnings("error")
def test_draws_black_face_without_mask(tmp_path: Path):
    face = face_outputs(0)
    face["HOG"][:] = 0
    face["MASK"][:] = False
    draw_sheet(tmp_path / "sheet.png", [SheetFace(0, "", outputs=face)], HOG)


def test_rejects_unusable_paths_and_face_counts(tmp_path: Path):
    faces = faces_with_long_texts(1)
    (tmp_path / "folder.png").mkdir()
    for name, message in (
        ("sheet.bmp2", "name of a picture must end in .png, "),
        ("sheet", "name of a picture must end in .png, "),
        ("none/sheet.png", "does not exist"),
        ("folder.png", "it is a folder"),
    ):
        with pytest.raises(ValueError, match=message):
            draw_sheet(tmp_path / name, faces, HOG)
    for count in (0, MAX_FACES + 1):
        with pytest.raises(ValueError, match=f"1 to 500 faces, not {count}"):
            draw_sheet(tmp_path / "sheet.png", faces * count, HOG)
    assert [file.name for file in tmp_path.iterdir()] == ["folder.png"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_failed_write_keeps_the_old_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
):
    path = tmp_path / "sheet.png"
    path.write_text("old")

    def fail(_figure: Figure, file: Path, **_arguments: object) -> None:
        file.write_text("half")
        raise error

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises((ValueError, KeyboardInterrupt)) as caught:
        draw_sheet(path, faces_with_long_texts(1), HOG)
    if isinstance(error, OSError):
        assert str(caught.value) == f"cannot write {path}: No space left on device"
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["sheet.png"]


def test_only_plotting_imports_matplotlib_and_never_pyplot():
    program = (
        "import sys, triton_face_client\n"
        "assert 'matplotlib' not in sys.modules\n"
        "import triton_face_client.plotting.contact_sheet, triton_face_client.plotting.face_figure\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert 'scipy' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
