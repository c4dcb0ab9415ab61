"""Images and frames of videos, as uint8 RGB arrays.

OpenCV reads videos, Pillow images: of a JPEG that is cut off OpenCV gives the half that is there without a
word. Both are imported when the first file needs them.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PureWindowsPath
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
"""Anything else is opened as a video."""

ORIENTATION = 0x0112
"""The EXIF tag that says how the camera was held."""

TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
"""Its values but 1, which is upright, and what Pillow calls what undoes them."""

INSTALL = "pip install 'triton-face-client[run]'"


class MediaError(ValueError):
    """An image or a video that cannot be used; the message is one line that names the file."""


def find_media(paths: Iterable[Path | str]) -> list[Path]:
    """List the files that paths stand for.

    Parameters
    ----------
    paths : iterable of Path or str
        A file stands for itself, a folder for the images in it (not those in folders inside, nor hidden
        ones), ordered by name with numbers by value: frame2 before frame10.

    Returns
    -------
    list of Path
        In the order of `paths`.

    Raises
    ------
    MediaError
        When a path does not exist or a folder has no image.
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
    """Tell by the suffix whether a file is read as an image."""
    return path.suffix.lower() in IMAGE_SUFFIXES


class FrameReader:
    """Reads frames by the file and the number that a landmark table gives. Use it as a context manager.

    The last frame is kept, so that many faces of one frame cost one reading. A video is read onwards, which
    is fast; one step back starts it anew, and so does every change between videos.

    Parameters
    ----------
    files : sequence of Path
        One video; or images and videos, which the table's sources name; or images, which the table numbers.
    turned : bool
        Whether to turn images as their EXIF orientation says (`FaceTable.turned`). Pillow turns TIFF files in
        any case, and so does py-feat, which reads those with it.
    of_one_file : bool
        Whether the table is of one file (`FaceTable.of_one_file`): that is a single video, whatever its name.

    Raises
    ------
    MediaError
        When there is no file.
    """

    def __init__(self, files: Sequence[Path], turned: bool, of_one_file: bool = True) -> None:
        if not files:
            raise MediaError("no image and no video is given")
        self._is_the_one = of_one_file and len(files) == 1 and not is_image(Path(files[0]))
        self._files = [Path(file) for file in files]
        self._turned = turned
        self._by_name: dict[str, set[Path]] = {}
        for file in self._files:
            self._by_name.setdefault(file.name, set()).add(file)
        self._video: _Video | None = None
        self._kept: tuple[Path, int] | None = None
        self._pixels = np.empty((0, 0, 3), dtype=np.uint8)

    def __enter__(self) -> "FrameReader":
        """Return the reader itself."""
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """Close the video that is open."""
        self.close()

    def close(self) -> None:
        """Close the video that is open."""
        if self._video is not None:
            self._video.close()
            self._video = None

    def read(self, source: str | None, frame: int) -> np.ndarray:
        """Read a frame.

        Parameters
        ----------
        source : str or None
            The file as the table spells it. One of the files with the same path is it, otherwise the one with
            the same name: tables are made on other machines. Where there is but one file and that is a video,
            it is the one, whatever the table calls it.
        frame : int
            Without a source the place in the list of images, from 0. With one, the frame of the video, from
            0; images have a single one and do not need it.

        Returns
        -------
        ndarray of uint8, shape (H, W, 3)
            RGB, not to be written to.

        Raises
        ------
        MediaError
            When no file or more than one is meant, when the file cannot be read, or when the video has no
            such frame.
        """
        file = self.file(source, frame)
        place = (file, 0 if is_image(file) else frame)
        if place != self._kept:
            self._pixels = _read_image(file, self._turned) if is_image(file) else self._video_frame(*place)
            self._pixels.flags.writeable = False
            self._kept = place
        return self._pixels

    def file(self, source: str | None, frame: int) -> Path:
        """Find the file that `read` would read; its errors are those of a file that is not to be found."""
        if self._is_the_one:
            return self._files[0]
        return self._numbered(frame) if source is None else self._named(source)

    def _numbered(self, frame: int) -> Path:
        video = next((file for file in self._files if not is_image(file)), None)
        if video is not None:
            raise MediaError(
                f"{video} is a video among {len(self._files)} files, and the table has no column input that "
                "names the file of each row: give it alone"
            )
        if not 0 <= frame < len(self._files):
            raise MediaError(
                f"the table has frame {frame}, but only {len(self._files)} images are given, from "
                f"{self._files[0]} on"
            )
        return self._files[frame]

    def _named(self, source: str) -> Path:
        # Windows' names end at either slash, and tables come from there too.
        named = self._by_name.get(PureWindowsPath(source).name, set())
        if Path(source) in named:
            return Path(source)
        if not named:
            raise MediaError(
                f"the table names {source}, which is not among the {len(self._files)} files given"
            )
        if len(named) > 1:
            first, second = sorted(named)[:2]
            raise MediaError(f"the table names {source}, which may be {first} or {second}: give one of them")
        return next(iter(named))

    def _video_frame(self, file: Path, frame: int) -> np.ndarray:
        if self._video is None or self._video.file != file or self._video.following > frame:
            self.close()
            self._video = _Video(file)
        return self._video.read(frame)


class _Video:
    """A video that is read onwards; `following` is the number of the frame that comes next."""

    def __init__(self, file: Path) -> None:
        try:
            import cv2
        except ImportError as error:
            raise MediaError(f"{file} is read with OpenCV: {INSTALL}") from error
        if not file.is_file():
            raise MediaError(f"{file} is not a file")
        self.file = file
        self.following = 0
        self._cv2 = cv2
        self._capture = cv2.VideoCapture(str(file))

    def close(self) -> None:
        """Let go of the file."""
        self._capture.release()

    def read(self, frame: int) -> np.ndarray:
        """Read frame `frame`, which is none before `following`."""
        if frame < 0:
            raise MediaError(f"{self.file} has no frame {frame}: frames count from 0")
        # Only the frame that is asked for is worth its conversion to RGB.
        while self.following <= frame:
            if not self._capture.grab():
                raise self._ended(frame)
            self.following += 1
        whole, pixels = self._capture.retrieve()
        if not whole:
            raise MediaError(f"{self.file}: frame {frame} cannot be decoded")
        return self._cv2.cvtColor(pixels, self._cv2.COLOR_BGR2RGB)

    def _ended(self, frame: int) -> MediaError:
        if self.following:
            return MediaError(f"{self.file} has {self.following} frames, frame {frame} is not among them")
        suffixes = ", ".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))
        return MediaError(f"{self.file} is neither a video that OpenCV can read nor an image ({suffixes})")


def _images_of_folder(folder: Path) -> list[Path]:
    images = [
        file
        for file in folder.iterdir()
        if is_image(file) and not file.name.startswith(".") and file.is_file()
    ]
    if not images:
        raise MediaError(f"{folder} has no image in it; videos are given by their own names")
    return sorted(images, key=_natural_order)


def _natural_order(file: Path) -> tuple[list[str | int], str]:
    """Return a key that compares numbers by value; text and numbers alternate, so none meets the other."""
    parts = re.split("([0-9]+)", file.name.lower())
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], file.name


def _read_image(file: Path, turned: bool) -> np.ndarray:
    try:
        from PIL import Image
    except ImportError as error:
        raise MediaError(f"{file} is read with Pillow: {INSTALL}") from error
    try:
        with Image.open(file) as image:
            image.load()
            depth = image.mode
            # A copy: Pillow's own memory may not be written to, and goes with the image.
            pixels = np.array(_rgb(_upright(image) if turned else image))
    # Pillow's readers raise any of these for files that are damaged, cut off or too large.
    except (OSError, SyntaxError, EOFError, TypeError, ValueError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise MediaError(f"cannot read {file}: {reason}") from error
    if depth in ("I", "F"):
        raise MediaError(
            f"{file} has 32 bits a pixel, whose black and white are unknown: save it with 8 bits"
        )
    return pixels


def _upright(image: "Image.Image") -> "Image.Image":
    """Undo the EXIF orientation. Pillow's own function writes the EXIF anew too: odd ones end it."""
    from PIL import Image

    turn = TURNS.get(image.getexif().get(ORIENTATION))
    return image if turn is None else image.transpose(Image.Transpose[turn])


def _rgb(image: "Image.Image") -> "Image.Image":
    """Turn an image into RGB, leaving out an alpha channel as py-feat does, not blending with it."""
    from PIL import Image

    if image.mode.startswith("I;16"):
        # The high byte, as Pillow itself takes it from 16-bit colours.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")
