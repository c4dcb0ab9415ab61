"""`python benchmarks/landmark_map.py FILE...`: how near MediaPipe's points, mapped to 68, come to dlib's.

FILE is a photograph or a video. Both landmarkers look at every face that dlib's detector finds; distances
are shares of the distance between dlib's outer eye corners (points 36 and 45). dlib's 68-point model only
measures here: it was trained on iBUG 300-W, whose licence excludes commercial use.

It runs in an environment of its own, because mediapipe and tritonclient want different releases of protobuf.
That is also why it is started as a file and reads the map from the client's file: importing the packages that
these belong to would ask for what that environment has not.
"""

import argparse
import dataclasses
import datetime
import functools
import importlib.metadata
import json
import platform
import runpy
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

PACKAGES = ("mediapipe==0.10.14", "dlib-bin", "face-recognition-models", "tqdm")
"""What to install; OpenCV and numpy come along."""

try:
    import cv2
    import dlib
    import mediapipe
    import numpy as np
    from tqdm import tqdm

    # Not imported: the package wants a pkg_resources, which new releases of setuptools have not.
    MODELS = importlib.metadata.distribution("face-recognition-models")
except ImportError as missing:
    sys.exit(f"landmark_map: {missing.name} is missing, run: pip install {' '.join(PACKAGES)}")

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "landmark_map.json"
CLIENT_MODULE = ROOT / "client" / "src" / "triton_face_client" / "landmarks.py"
PREDICTOR = "face_recognition_models/models/shape_predictor_68_face_landmarks.dat"
MEASURED_WITH = ("mediapipe", "dlib-bin", "face-recognition-models", "opencv-contrib-python", "numpy")

REGIONS = {
    "jaw": range(17),
    "brows": range(17, 27),
    "nose bridge": range(27, 31),
    "under the nose": range(31, 36),
    "eyes": range(36, 48),
    "outer lips": range(48, 60),
    "inner lips": range(60, 68),
    "all but the jaw": range(17, 68),
    "all": range(68),
}

LONGEST_SIDE = 1600
"""Larger pictures are shrunk to this many pixels, for time."""

SMALLEST_CROP = 256
"""Smaller crops are enlarged to this many pixels, because MediaPipe's detector misses small faces."""

CORNERS = {36: 33, 39: 133, 42: 362, 45: 263, 48: 61, 54: 291}
"""Points that every map has at the same vertices, the corners of eyes and mouth, and so can tell failures."""

CORNERS_APART = 0.05
"""Mean distance at the corners beyond which one of the two failed: good faces have up to 0.035."""

TURNED = 0.3
"""How far the nose tip is off the eyes' middle, in their distances, if a head is turned by 30 degrees."""


@dataclasses.dataclass(frozen=True)
class Face:
    """What both landmarkers found, in pixels of the picture.

    Attributes
    ----------
    native : ndarray, shape (68, 2)
        dlib's points.
    mesh : ndarray, shape (468, 2)
        MediaPipe's mesh, without irises.
    """

    native: np.ndarray
    mesh: np.ndarray

    @property
    def scale(self) -> float:
        """Return the distance between dlib's outer eye corners in pixels."""
        return float(np.linalg.norm(self.native[45] - self.native[36]))

    @property
    def corners_apart(self) -> float:
        """Return the mean distance between the landmarkers at `CORNERS`, in shares."""
        apart = self.mesh[list(CORNERS.values())] - self.native[list(CORNERS)]
        return float(np.linalg.norm(apart, axis=1).mean()) / self.scale

    @property
    def turn(self) -> float:
        """Return how far the nose tip is off the middle of the eyes, along their line, in shares."""
        eyes = self.mesh[263] - self.mesh[33]
        nose = self.mesh[4] - (self.mesh[33] + self.mesh[263]) / 2
        return float(nose @ eyes / (eyes @ eyes))

    @property
    def kind(self) -> str:
        """Return "measured", or why the face is not."""
        if self.corners_apart > CORNERS_APART:
            return "landmarkers disagree"
        return "turned" if abs(self.turn) > TURNED else "measured"

    def distances(self) -> np.ndarray:
        """Return the distances of every point from every vertex, in shares, ``[68, 468]``."""
        return np.linalg.norm(self.native[:, None] - self.mesh[None], axis=-1) / self.scale


class Landmarkers:
    """dlib's detector and 68-point predictor, and MediaPipe's face mesh on what the detector finds."""

    def __init__(self) -> None:
        self._detect = dlib.get_frontal_face_detector()
        self._predict = dlib.shape_predictor(str(MODELS.locate_file(PREDICTOR)))
        self._mesh = mediapipe.solutions.face_mesh.FaceMesh(
            static_image_mode=True, max_num_faces=5, refine_landmarks=True, min_detection_confidence=0.3
        )

    def __call__(self, picture: np.ndarray) -> Iterator[Face | None]:
        """Give the faces of a picture, RGB uint8 ``[H, W, 3]``; None for one that MediaPipe does not find."""
        for box in self._detect(picture, 1):
            native = np.array([(point.x, point.y) for point in self._predict(picture, box).parts()], float)
            centre, side = box.center(), max(box.width(), box.height())
            meshes = self._meshes_near(picture, (centre.x, centre.y), side)
            nearest = min(
                meshes, key=lambda mesh: np.linalg.norm(mesh.mean(0) - native.mean(0)), default=None
            )
            yield None if nearest is None else Face(native, nearest)

    def _meshes_near(self, picture: np.ndarray, centre: tuple[int, int], reach: int) -> list[np.ndarray]:
        """Find meshes in the square of twice `reach` around `centre`, in pixels of the picture."""
        padded = cv2.copyMakeBorder(picture, reach, reach, reach, reach, cv2.BORDER_REPLICATE)
        left, top = max(centre[0], 0), max(centre[1], 0)
        crop = padded[top : top + 2 * reach, left : left + 2 * reach]
        height, width = crop.shape[:2]
        enlarged = _resized(crop, max(1.0, SMALLEST_CROP / min(height, width)))
        found = self._mesh.process(np.ascontiguousarray(enlarged)).multi_face_landmarks or []
        shares = [np.array([(point.x, point.y) for point in face.landmark]) for face in found]
        return [share[:468] * (width, height) + (left - reach, top - reach) for share in shares]


def main() -> None:
    """Measure and write the record, or draw the picture."""
    arguments = _arguments()
    landmarkers = Landmarkers()
    vertices = arguments.vertices or client_map()
    if arguments.picture:
        draw(landmarkers, arguments.files[0], vertices, arguments.picture)
        return
    record = measure(landmarkers, arguments.files, arguments.frames, vertices)
    arguments.output.write_text(json.dumps(record, indent=2) + "\n")
    print({"faces": record["faces"]} | {name: figures["mean"] for name, figures in record["regions"].items()})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python benchmarks/landmark_map.py", description=__doc__)
    parser.add_argument("files", type=_readable, nargs="+", metavar="FILE", help="photographs and videos")
    parser.add_argument(
        "--frames", type=int, default=5, help="frames of a video, evenly spread (default: %(default)s)"
    )
    parser.add_argument(
        "--vertices", type=_map, metavar="V,V,...", help="measure another map, 68 vertices, not the client's"
    )
    parser.add_argument(
        "--output", type=Path, default=RESULT, metavar="FILE.json", help="where to write (default: results/)"
    )
    parser.add_argument(
        "--picture",
        type=Path,
        metavar="FILE.png",
        help="only draw the first file's first face, into this file",
    )
    return parser.parse_args()


def _readable(text: str) -> Path:
    if not (cv2.haveImageReader(text) or cv2.VideoCapture(text).isOpened()):
        raise argparse.ArgumentTypeError(f"{text} is neither a picture nor a video that OpenCV reads")
    return Path(text)


def _map(text: str) -> list[int]:
    vertices = [int(vertex) for vertex in text.split(",")]
    if len(vertices) != 68 or not set(vertices) <= set(range(468)):
        raise argparse.ArgumentTypeError("a map is 68 vertices from 0 to 467 with commas between")
    return vertices


def client_map() -> Sequence[int]:
    """Return the 68 vertices of the client's map."""
    return runpy.run_path(str(CLIENT_MODULE))["MEDIAPIPE_TO_68"]


def measure(
    landmarkers: Landmarkers, files: Sequence[Path], frames: int, vertices: Sequence[int]
) -> dict[str, Any]:
    """Return the record of a map's distances over the faces of `files`."""
    pictures = [(file, frame) for file in files for frame in _frames(file, frames)]
    found: dict[str, list[Face]] = {"measured": [], "turned": [], "landmarkers disagree": []}
    measured_of, without_mesh = dict.fromkeys((file.name for file in files), 0), 0
    for file, frame in tqdm(pictures, unit="picture"):
        for face in landmarkers(_read(file, frame)):
            if face is None:
                without_mesh += 1
                continue
            found[face.kind].append(face)
            measured_of[file.name] += face.kind == "measured"
    if not found["measured"]:
        sys.exit("landmark_map: no face that both landmarkers find in these files")
    return {
        "unit": "share of the distance between points 36 and 45, the outer eye corners",
        "faces": len(found["measured"]),
        "faces_of_file": measured_of,
        "left_out": {
            "turned": len(found["turned"]),
            "landmarkers disagree": len(found["landmarkers disagree"]),
            "MediaPipe finds none": without_mesh,
        },
        **_figures(found["measured"], vertices),
        "regions_of_turned_faces": _figures(found["turned"], vertices)["regions"] if found["turned"] else {},
        "measured_on": _versions(),
    }


def _figures(faces: Sequence[Face], vertices: Sequence[int]) -> dict[str, Any]:
    """Return the figures by region and by point; `nearest` is the vertex with the least mean distance."""
    every = np.stack([face.distances() for face in faces])
    mapped, mean = every[:, range(68), list(vertices)], every.mean(axis=0)
    nearest = mean.argmin(axis=1)
    points = [
        {"point": point, "vertex": vertices[point]}
        | _summary(mapped[:, point])
        | {"nearest": int(nearest[point]), "nearest_mean": round(float(mean[point, nearest[point]]), 4)}
        for point in range(68)
    ]
    return {"regions": {name: _summary(mapped[:, list(r)]) for name, r in REGIONS.items()}, "points": points}


def _summary(distances: np.ndarray) -> dict[str, float]:
    return {
        "mean": round(float(distances.mean()), 4),
        "p90": round(float(np.percentile(distances, 90)), 4),
    }


def _versions() -> dict[str, str]:
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in MEASURED_WITH},
    }


def _frames(file: Path, count: int) -> list[int]:
    """Return the frames to look at; only 0 for a photograph."""
    if cv2.haveImageReader(str(file)):
        return [0]
    total = max(1.0, cv2.VideoCapture(str(file)).get(cv2.CAP_PROP_FRAME_COUNT))
    # The middle of each part: the very last frame is counted in some files that do not have it.
    return np.unique(((np.arange(count) + 0.5) * total / count).astype(int)).tolist()


def _read(file: Path, frame: int) -> np.ndarray:
    """Return a picture, RGB uint8 ``[H, W, 3]``, of at most `LONGEST_SIDE`."""
    if cv2.haveImageReader(str(file)):
        picture = cv2.imread(str(file))
    else:
        video = cv2.VideoCapture(str(file))
        video.set(cv2.CAP_PROP_POS_FRAMES, frame)
        picture = video.read()[1]
    if picture is None:
        sys.exit(f"landmark_map: frame {frame} of {file} cannot be read")
    shrunk = _resized(picture, min(1.0, LONGEST_SIDE / max(picture.shape[:2])))
    return cv2.cvtColor(shrunk, cv2.COLOR_BGR2RGB)


def _resized(picture: np.ndarray, factor: float) -> np.ndarray:
    if factor == 1.0:
        return picture
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return cv2.resize(picture, None, fx=factor, fy=factor, interpolation=how)


PICTURE_SIDE = 800
NATIVE_COLOUR, MAPPED_COLOUR, WHITE, DARK = (60, 230, 60), (60, 120, 255), (255, 255, 255), (40, 40, 40)
"""BGR: dlib's points are green, the mesh's orange."""


def draw(landmarkers: Landmarkers, file: Path, vertices: Sequence[int], output: Path) -> None:
    """Draw both landmarkers' points on the first face of a file, each pair joined by a line."""
    picture = _read(file, 0)
    face = next((face for face in landmarkers(picture) if face is not None), None)
    if face is None:
        sys.exit(f"landmark_map: no face that both landmarkers find in {file}")
    canvas, corner, factor = _closeup(picture, face)
    native, mapped = ((points - corner) * factor for points in (face.native, face.mesh[list(vertices)]))
    for start, end in zip(native, mapped, strict=True):
        cv2.line(canvas, _pixel(start), _pixel(end), WHITE, 1, cv2.LINE_AA)
    for start, end in zip(native, mapped, strict=True):
        _native_mark(canvas, start)
        _mapped_mark(canvas, end)
    _legend(canvas)
    cv2.imwrite(str(output), canvas)


def _closeup(picture: np.ndarray, face: Face) -> tuple[np.ndarray, np.ndarray, float]:
    """Return the enlarged face in BGR, the place of its upper left corner in `picture`, and the factor."""
    centre = (face.native.min(axis=0) + face.native.max(axis=0)) / 2
    reach = int(0.65 * np.ptp(face.native, axis=0).max())
    corner = np.maximum(centre.astype(int) - reach, 0)
    crop = picture[corner[1] : corner[1] + 2 * reach, corner[0] : corner[0] + 2 * reach]
    factor = PICTURE_SIDE / max(crop.shape[:2])
    return cv2.cvtColor(_resized(crop, factor), cv2.COLOR_RGB2BGR), corner, factor


def _native_mark(canvas: np.ndarray, place: Sequence[float]) -> None:
    for colour, width in ((DARK, 4), (NATIVE_COLOUR, 2)):
        cv2.circle(canvas, _pixel(place), 6, colour, width, cv2.LINE_AA)


def _mapped_mark(canvas: np.ndarray, place: Sequence[float]) -> None:
    for colour, width in ((DARK, 4), (MAPPED_COLOUR, 2)):
        cv2.drawMarker(canvas, _pixel(place), colour, cv2.MARKER_TILTED_CROSS, 9, width, cv2.LINE_AA)


def _legend(canvas: np.ndarray) -> None:
    write = functools.partial(
        cv2.putText, fontFace=cv2.FONT_HERSHEY_SIMPLEX, fontScale=0.55, lineType=cv2.LINE_AA
    )
    cv2.rectangle(canvas, (8, 8), (330, 66), DARK, cv2.FILLED)
    for y, mark, text in (
        (26, _native_mark, "dlib's 68 points"),
        (50, _mapped_mark, "MediaPipe's mesh, mapped to 68"),
    ):
        mark(canvas, (24, y))
        write(canvas, text, (42, y + 5), color=WHITE, thickness=1)


def _pixel(place: Sequence[float]) -> tuple[int, int]:
    return round(float(place[0])), round(float(place[1]))


if __name__ == "__main__":
    main()
