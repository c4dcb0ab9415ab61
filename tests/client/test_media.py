"""Reading images and video frames, from files that the tests write."""

import io
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps
from skimage.data import astronaut

from triton_face_client.video import media
from triton_face_client.video.media import FrameReader, MediaError, find_media, is_image

ORIENTATION = 0x0112
"""EXIF tag of the orientation. With the value 6, viewers rotate the image by 90 degrees clockwise."""


def write_video(path: Path, count: int, size: tuple[int, int] = (64, 48), first: int = 0) -> Path:
    """Write `count` frames, numbered from `first`: red is 8 times the number, green is 0, blue is 200."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 25, size)
    assert writer.isOpened()
    for number in range(first, first + count):
        writer.write(np.full((size[1], size[0], 3), (200, 0, 8 * number), dtype=np.uint8))
    writer.release()
    return path


def frame_number(frame: np.ndarray) -> int:
    """Return the number of a frame of `write_video`."""
    return round(float(frame[..., 0].mean()) / 8)


def write_image(path: Path, value: int = 0) -> Path:
    """Write an image whose channels all have this value."""
    Image.fromarray(np.full((4, 6, 3), value, dtype=np.uint8)).save(path)
    return path


def read_one(path: Path, apply_exif: bool = False) -> np.ndarray:
    """Read the first frame of a single file."""
    with FrameReader([path], apply_exif) as reader:
        return reader.read(None, 0)


def read_error(files: list[Path], source: str | None = None, frame: int = 0) -> str:
    """Read a frame that raises MediaError; return its message of one line."""
    with pytest.raises(MediaError) as caught, FrameReader(files, False) as reader:
        reader.read(source, frame)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- files --------------------------------------------------------------------------------------


def test_folder_gives_images_in_natural_order(tmp_path: Path):
    names = [
        "frame10.PNG",
        "frame2.png",
        "Frame1.jpg",
        "b.webp",
        "2.tif",
        "10.tiff",
        "a3b20.bmp",
        "a3b3.jpeg",
    ]
    for name in [*names, "notes.txt", "clip.mp4", "._frame3.png"]:
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [file.name for file in find_media([tmp_path])] == [
        "2.tif", "10.tiff", "a3b3.jpeg", "a3b20.bmp", "b.webp", "Frame1.jpg", "frame2.png", "frame10.PNG",
    ]  # fmt: skip


def test_keeps_the_order_of_given_files(tmp_path: Path):
    (tmp_path / "images").mkdir()
    inside, last, first = (tmp_path / name for name in ("images/x.png", "a.png", "clip.avi"))
    for file in (inside, last, first):
        file.touch()
    assert find_media([str(first), tmp_path / "images", last]) == [first, inside, last]


def test_error_names_missing_files_and_folders_without_images(tmp_path: Path):
    (tmp_path / "clip.avi").touch()
    with pytest.raises(MediaError, match="nothing.png does not exist"):
        find_media([tmp_path / "nothing.png"])
    with pytest.raises(MediaError, match="has no image in it"):
        find_media([tmp_path])


def test_image_suffixes_are_case_insensitive():
    assert is_image(Path("a.JPEG"))
    assert not is_image(Path("a.avi"))


# --- videos -------------------------------------------------------------------------------------


def test_reads_rgb_frames_in_any_order(tmp_path: Path):
    video = write_video(tmp_path / "clip.avi", 12)
    with FrameReader([video], apply_exif=True) as reader:
        for number in (0, 1, 5, 5, 11, 3, 3, 4, 0):
            frame = reader.read(None, number)
            assert frame.shape == (48, 64, 3)
            assert frame.dtype == np.uint8
            assert frame_number(frame) == number
            assert abs(frame[..., 2].mean() - 200) < 4


def test_single_video_matches_any_name(tmp_path: Path):
    video = write_video(tmp_path / "clip.avi", 3)
    with FrameReader([video], False) as reader:
        assert frame_number(reader.read("/elsewhere/recording.mp4", 2)) == 2
        assert frame_number(reader.read(None, 1)) == 1


def test_selects_one_of_several_videos_by_name(tmp_path: Path):
    one = write_video(tmp_path / "one.avi", 5)
    two = write_video(tmp_path / "two.avi", 5, first=10)
    picture = write_image(tmp_path / "three.png", 7)
    with FrameReader([one, two, picture], False) as reader:
        assert frame_number(reader.read("two.avi", 3)) == 13
        assert frame_number(reader.read("one.avi", 3)) == 3
        assert reader.read("three.png", 3).max() == 7
        assert frame_number(reader.read("one.avi", 4)) == 4


def test_reads_a_frame_with_several_faces_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    video = write_video(tmp_path / "clip.avi", 4)
    picture = write_image(tmp_path / "a.png")
    opened = []
    read_image, open_video = media._read_image, cv2.VideoCapture

    def record_image(path: Path, *arguments: object) -> np.ndarray:
        opened.append(path)
        return read_image(path, *arguments)

    def record_video(name: str) -> object:
        opened.append(Path(name))
        return open_video(name)

    monkeypatch.setattr(media, "_read_image", record_image)
    monkeypatch.setattr(cv2, "VideoCapture", record_video)
    with FrameReader([video, picture], False) as reader:
        for frame in (0, 0, 2, 2, 3):
            last_frame = reader.read("clip.avi", frame)
        assert reader.read("clip.avi", 3) is last_frame
        # py-feat numbers images consecutively; the reader ignores an image's frame.
        assert reader.read("a.png", 4) is reader.read("a.png", 5)
    assert opened == [video, picture]


def test_frames_are_read_only(tmp_path: Path):
    with pytest.raises(ValueError, match="read-only"):
        read_one(write_video(tmp_path / "clip.avi", 1))[0] = 0
    with pytest.raises(ValueError, match="read-only"):
        read_one(write_image(tmp_path / "a.png"))[0] = 0


def test_frame_past_the_end_is_an_error_and_the_reader_stays_usable(tmp_path: Path):
    video = write_video(tmp_path / "clip.avi", 6)
    assert read_error([video], frame=9) == f"{video} has 6 frames, frame 9 is not among them"
    with FrameReader([video], False) as reader:
        for frame in (6, 9):
            with pytest.raises(MediaError, match=f"has 6 frames, frame {frame} is not"):
                reader.read(None, frame)
        with pytest.raises(MediaError, match="has no frame -1"):
            reader.read(None, -1)
        assert frame_number(reader.read(None, 5)) == 5


def test_closes_the_video_at_the_end(tmp_path: Path):
    with FrameReader([write_video(tmp_path / "clip.avi", 2)], False) as reader:
        reader.read(None, 0)
        capture = reader._video._capture
        assert capture.isOpened()
    assert not capture.isOpened()


def test_error_names_a_file_that_is_neither_video_nor_image(tmp_path: Path):
    text = tmp_path / "notes.txt"
    text.write_text("no video")
    message = read_error([text])
    assert f"{text} is neither a video" in message
    assert "jpeg" in message
    assert "gone.mp4 is not a file" in read_error([tmp_path / "gone.mp4"])


# --- choice of the file -------------------------------------------------------------------------


def test_reads_images_by_index_without_names(tmp_path: Path):
    files = [write_image(tmp_path / f"{name}.png", value) for value, name in enumerate("cab")]
    with FrameReader(files, False) as reader:
        assert [reader.read(None, frame).max() for frame in (0, 2, 1)] == [0, 2, 1]
    for frame in (3, -1):
        message = read_error(files, frame=frame)
        assert f"frame {frame}" in message
        assert "3 images" in message


@pytest.mark.parametrize("folder", ["", "/elsewhere/", "C:\\Users\\me\\"])
def test_reads_images_by_name_rather_than_index(tmp_path: Path, folder: str):
    files = [write_image(tmp_path / f"{name}.png", value) for value, name in enumerate("cab")]
    with FrameReader(files, False) as reader:
        assert reader.read(f"{folder}b.png", 0).max() == 2


def test_same_path_takes_precedence_over_same_name(tmp_path: Path):
    files = []
    for value, name in enumerate(("one", "two")):
        (tmp_path / name).mkdir()
        files.append(write_image(tmp_path / name / "face.png", value))
    with FrameReader(files, False) as reader:
        assert reader.read(str(files[1]), 0).max() == 1
        assert reader.read(str(files[0]), 0).max() == 0
    message = read_error(files, "face.png")
    assert all(str(file) in message for file in files)


def test_file_given_twice_matches_once(tmp_path: Path):
    file = write_image(tmp_path / "face.png", 9)
    with FrameReader([file, file], False) as reader:
        assert reader.read("face.png", 0).max() == 9


def test_error_names_a_file_that_is_not_given(tmp_path: Path):
    files = [write_image(tmp_path / "a.png"), write_image(tmp_path / "b.png")]
    assert "the table names c.png, which is not among the 2 given files" in read_error(files, "c.png")


def test_error_for_a_video_among_images_asks_for_names(tmp_path: Path):
    files = [write_image(tmp_path / "a.png"), write_video(tmp_path / "clip.avi", 2)]
    message = read_error(files)
    assert "clip.avi is a video among 2 files" in message
    assert "input" in message


def test_rejects_an_empty_list_of_files():
    with pytest.raises(MediaError, match="no image and no video"):
        FrameReader([], False)


# --- images -------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "tiff"])
def test_reads_lossless_images_exactly(tmp_path: Path, suffix: str):
    photo = astronaut()[:90, :120]
    Image.fromarray(photo).save(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(read_one(tmp_path / f"a.{suffix}"), photo)


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "webp"])
def test_reads_lossy_images_approximately(tmp_path: Path, suffix: str):
    photo = astronaut()[:90, :120]
    Image.fromarray(photo).save(tmp_path / f"a.{suffix}", quality=95)
    assert np.abs(read_one(tmp_path / f"a.{suffix}") - photo.astype(float)).mean() < 4


def test_drops_alpha_without_blending(tmp_path: Path):
    photo = np.random.default_rng(13).integers(0, 256, (9, 7, 4), dtype=np.uint8)
    photo[:4, :, 3] = 0
    Image.fromarray(photo, "RGBA").save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_one(tmp_path / "a.png"), photo[..., :3])


def test_grey_gives_three_equal_channels(tmp_path: Path):
    grey = np.random.default_rng(14).integers(0, 256, (9, 7), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "a.png")
    Image.fromarray(np.stack([grey, 255 - grey], axis=-1), "LA").save(tmp_path / "alpha.png")
    for name in ("a.png", "alpha.png"):
        np.testing.assert_array_equal(read_one(tmp_path / name), np.repeat(grey[..., None], 3, axis=2))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_keeps_the_high_byte(tmp_path: Path, suffix: str):
    deep = np.array([[0, 255, 256, 0x7FFF], [0x8000, 0xFEFF, 0xFF00, 0xFFFF]], dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / f"a.{suffix}")
    expected = np.repeat((deep // 256).astype(np.uint8)[..., None], 3, axis=2)
    np.testing.assert_array_equal(read_one(tmp_path / f"a.{suffix}"), expected)


def test_16_bit_colour_keeps_the_high_byte(tmp_path: Path):
    deep = np.random.default_rng(15).integers(0, 2**16, (5, 6, 3)).astype(np.uint16)
    assert cv2.imwrite(str(tmp_path / "a.png"), deep)
    np.testing.assert_array_equal(read_one(tmp_path / "a.png"), deep[..., ::-1] // 256)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_rejects_32_bit_images(tmp_path: Path, dtype: type):
    Image.fromarray(np.ones((4, 5), dtype=dtype)).save(tmp_path / "a.tif")
    assert "32 bits" in read_error([tmp_path / "a.tif"])


def test_applies_exif_orientation_only_on_request(tmp_path: Path):
    photo = np.random.default_rng(16).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(photo).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_one(tmp_path / "a.png", apply_exif=False), photo)
    np.testing.assert_array_equal(read_one(tmp_path / "a.png", apply_exif=True), np.rot90(photo, -1))


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("orientation", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
def test_undoes_each_exif_orientation_once(tmp_path: Path, suffix: str, orientation: int):
    photo = np.random.default_rng(16).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(photo).save(tmp_path / f"a.{suffix}", exif=exif)
    with Image.open(tmp_path / f"a.{suffix}") as image:
        expected = np.array(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(read_one(tmp_path / f"a.{suffix}", apply_exif=True), expected)


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "tif", "webp"])
@pytest.mark.parametrize("fraction", [0, 0.2, 0.6, 0.95])
def test_rejects_truncated_images(tmp_path: Path, suffix: str, fraction: float):
    file = tmp_path / f"a.{suffix}"
    Image.fromarray(astronaut()[:90, :120]).save(file)
    file.write_bytes(file.read_bytes()[: int(fraction * file.stat().st_size)])
    assert f"cannot read {file}: " in read_error([file])


def test_error_names_a_missing_image(tmp_path: Path):
    assert "No such file" in read_error([tmp_path / "gone.png"])


def test_rejects_decompression_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert "cannot read" in read_error([write_image(tmp_path / "a.png")])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_exif_gives_an_image_or_an_error_message(tmp_path: Path):
    """Any other exception would end `triton-face run`."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    jpeg = io.BytesIO()
    Image.fromarray(np.zeros((4, 6, 3), dtype=np.uint8)).save(jpeg, "JPEG", exif=exif)
    start = jpeg.getvalue().index(b"Exif")
    for position in range(start, start + 40):
        damaged = bytearray(jpeg.getvalue())
        damaged[position] ^= 0xFF
        (tmp_path / "a.jpg").write_bytes(damaged)
        try:
            assert sorted(read_one(tmp_path / "a.jpg", apply_exif=True).shape) == [3, 4, 6]
        except MediaError as error:
            assert "cannot read" in str(error)  # noqa: PT017


# --- missing packages ---------------------------------------------------------------------------


@pytest.mark.parametrize(("module", "name"), [("cv2", "clip.avi"), ("PIL", "a.png")])
def test_error_names_the_extra_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, name: str
):
    (tmp_path / name).touch()
    monkeypatch.setitem(sys.modules, module, None)
    assert "pip install 'triton-face-client[run]'" in read_error([tmp_path / name])
