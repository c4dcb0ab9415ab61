"""Read images and frames of videos as uint8 RGB arrays.

OpenCV reads videos and Pillow reads images, because OpenCV decodes half of a truncated JPEG without an error.
Each library is imported when the first file needs it.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PureWindowsPath
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
"""Files with any other suffix are opened as videos."""

ORIENTATION_TAG = 0x0112
"""EXIF's Orientation."""

TRANSPOSES = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
"""Pillow's transpose that undoes each EXIF orientation; 1 is upright."""

INSTALL = "pip install 'triton-face-client[run]'"


class MediaError(ValueError):
    """An image or a video cannot be used; the message is one line that names the file."""


def find_media(paths: Iterable[Path | str]) -> list[Path]:
    """List the given files and the images in the given folders.

    Parameters
    ----------
    paths : iterable of Path or str
        Files and folders. A folder adds the images directly in it, except hidden files, in natural order:
        frame2 before frame10.

    Returns
    -------
    list of Path
        In the order of `paths`.

    Raises
    ------
    MediaError
        If a path does not exist or a folder has no image.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            files += _images_of_folder(path)
        elif path.exists():
            files.append(path)
        else:
            raise MediaError(f"{path} does not exist")
    return files


def is_image(path: Path) -> bool:
    """Return whether a file has the suffix of an image."""
    return path.suffix.lower() in IMAGE_SUFFIXES


class FrameReader:
    """Read the frames to which the rows of a landmark table refer. Use the reader as a context manager.

    The reader caches the last frame, so that several faces of one frame decode it once. It reads videos
    sequentially; an earlier frame or another video reopens the file.

    Parameters
    ----------
    files : sequence of Path
        One video; or the images and videos that the table names; or, if the table names no files, its images
        in the order of their frame numbers.
    apply_exif : bool
        Whether to rotate images by their EXIF orientation (`LandmarkTable.exif_applied`). Pillow always
        rotates TIFF files; py-feat reads TIFF with Pillow, so its coordinates refer to the rotated image.
    one_source : bool
        Whether the table names one file at most (`LandmarkTable.names_one_file_at_most`). If so, a single
        given video matches every row, whatever its name.

    Raises
    ------
    MediaError
        If `files` is empty.
    """

    def __init__(self, files: Sequence[Path], apply_exif: bool, one_source: bool = True) -> None:
        if not files:
            raise MediaError("no image and no video is given")
        self._is_single_video = one_source and len(files) == 1 and not is_image(Path(files[0]))
        self._files = [Path(file) for file in files]
        self._apply_exif = apply_exif
        self._by_name: dict[str, set[Path]] = {}
        for file in self._files:
            self._by_name.setdefault(file.name, set()).add(file)
        self._video: _Video | None = None
        self._cached: tuple[Path, int] | None = None
        self._pixels: NDArray[np.uint8] = np.empty((0, 0, 3), dtype=np.uint8)

    def __enter__(self) -> "FrameReader":
        """Return the reader itself."""
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """Close the open video."""
        self.close()

    def close(self) -> None:
        """Close the open video."""
        if self._video is not None:
            self._video.close()
            self._video = None

    def read(self, source: str | None, frame: int) -> NDArray[np.uint8]:
        """Read a frame.

        Parameters
        ----------
        source : str or None
            Name of the file in the table, which selects the given file with the same path. If there is none,
            it selects the file with the same name in any folder, because tables may be made on other
            machines. With `one_source`, a single given video matches any name.
        frame : int
            Frame of the video, from 0. For images: the index in the list of images, from 0, if `source` is
            None; otherwise ignored.

        Returns
        -------
        ndarray of uint8, shape (H, W, 3)
            RGB, read-only.

        Raises
        ------
        MediaError
            If no file or more than one matches, the file cannot be read, or the video lacks the frame.
        """
        file = self.file(source, frame)
        location = (file, 0 if is_image(file) else frame)
        if location != self._cached:
            image = is_image(file)
            self._pixels = _read_image(file, self._apply_exif) if image else self._read_video(*location)
            self._pixels.flags.writeable = False
            self._cached = location
        return self._pixels

    def file(self, source: str | None, frame: int) -> Path:
        """Return the file that `read` reads; raise MediaError if no file or more than one matches."""
        if self._is_single_video:
            return self._files[0]
        return self._file_by_index(frame) if source is None else self._file_by_name(source)

    def _file_by_index(self, frame: int) -> Path:
        video = next((file for file in self._files if not is_image(file)), None)
        if video is not None:
            raise MediaError(
                f"{video} is a video among {len(self._files)} files, but the table has no column input with "
                "the file of each row: give the video alone"
            )
        if not 0 <= frame < len(self._files):
            raise MediaError(
                f"the table has frame {frame}, but only {len(self._files)} images are given, the first is "
                f"{self._files[0]}: give all images of the table"
            )
        return self._files[frame]

    def _file_by_name(self, source: str) -> Path:
        # PureWindowsPath splits at both slashes: tables may be made on Windows.
        matches = self._by_name.get(PureWindowsPath(source).name, set())
        if Path(source) in matches:
            return Path(source)
        if not matches:
            raise MediaError(
                f"the table names {source}, which is not among the {len(self._files)} given files: add it"
            )
        if len(matches) > 1:
            first, second = sorted(matches)[:2]
            raise MediaError(
                f"the table names {source}, which matches {first} and {second}: give one of them"
            )
        return next(iter(matches))

    def _read_video(self, file: Path, frame: int) -> NDArray[np.uint8]:
        if self._video is None or self._video.file != file or self._video.next_frame > frame:
            self.close()
            self._video = _Video(file)
        return self._video.read(frame)


class _Video:
    """A video read sequentially; `next_frame` is the number of the next frame."""

    def __init__(self, file: Path) -> None:
        try:
            import cv2
        except ImportError as error:
            raise MediaError(f"reading {file} needs OpenCV: {INSTALL}") from error
        if not file.is_file():
            raise MediaError(f"{file} is not a file")
        self.file = file
        self.next_frame = 0
        self._cv2 = cv2
        self._capture = cv2.VideoCapture(str(file))

    def close(self) -> None:
        """Close the file."""
        self._capture.release()

    def read(self, frame: int) -> NDArray[np.uint8]:
        """Read a frame, `next_frame` or a later one."""
        if frame < 0:
            raise MediaError(f"{self.file} has no frame {frame}: frames count from 0")
        # grab() skips frames without converting them to RGB.
        while self.next_frame <= frame:
            if not self._capture.grab():
                raise self._end_error(frame)
            self.next_frame += 1
        decoded, pixels = self._capture.retrieve()
        if not decoded:
            raise MediaError(f"{self.file}: frame {frame} cannot be decoded; convert the video again")
        return np.asarray(self._cv2.cvtColor(pixels, self._cv2.COLOR_BGR2RGB), dtype=np.uint8)

    def _end_error(self, frame: int) -> MediaError:
        if self.next_frame:
            return MediaError(f"{self.file} has {self.next_frame} frames, frame {frame} is not among them")
        suffixes = ", ".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))
        return MediaError(f"{self.file} is neither a video that OpenCV can read nor an image ({suffixes})")


def _images_of_folder(folder: Path) -> list[Path]:
    images = [
        file
        for file in folder.iterdir()
        if is_image(file) and not file.name.startswith(".") and file.is_file()
    ]
    if not images:
        raise MediaError(f"{folder} has no image in it; give a video by its own path")
    return sorted(images, key=_natural_order)


def _natural_order(file: Path) -> tuple[list[str | int], str]:
    """Return a sort key that compares numbers by value. Text has even indices, numbers have odd ones."""
    parts = re.split("([0-9]+)", file.name.lower())
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], file.name


def _read_image(file: Path, apply_exif: bool) -> NDArray[np.uint8]:
    try:
        from PIL import Image
    except ImportError as error:
        raise MediaError(f"reading {file} needs Pillow: {INSTALL}") from error
    try:
        with Image.open(file) as image:
            image.load()
            mode = image.mode
            # np.array copies the pixels, which Pillow frees with the image.
            pixels = np.array(_rgb(_upright(image) if apply_exif else image))
    # Pillow's errors for files that are damaged, truncated or too large.
    except (OSError, SyntaxError, EOFError, TypeError, ValueError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise MediaError(f"cannot read {file}: {reason}") from error
    if mode in ("I", "F"):
        raise MediaError(
            f"{file} has 32 bits per pixel, a format without defined black and white: save it with 8 bits"
        )
    return pixels


def _upright(image: "Image.Image") -> "Image.Image":
    """Undo the EXIF orientation."""
    from PIL import Image

    # ImageOps.exif_transpose would also rewrite the EXIF data, and fails if they are malformed.
    transpose = TRANSPOSES.get(image.getexif().get(ORIENTATION_TAG, 1))
    return image if transpose is None else image.transpose(Image.Transpose[transpose])


def _rgb(image: "Image.Image") -> "Image.Image":
    """Convert an image to RGB. Like py-feat, drop an alpha channel instead of blending with it."""
    from PIL import Image

    if image.mode.startswith("I;16"):
        # Keep the high byte, as Pillow does for 16-bit colours.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")
