"""`python benchmarks/landmark_map.py FILE...`: distances of MediaPipe's points, mapped to 68, from dlib's.

FILE is a photograph or a video. Both landmarkers process each face that dlib's detector finds. Distances are
fractions of the distance between dlib's outer eye corners (points 36 and 45). dlib's 68-point model serves
only for this measurement: it was trained on iBUG 300-W, whose licence excludes commercial use.

mediapipe and tritonclient need different versions of protobuf, so the script runs in a separate environment
without the client and its dependencies. It therefore imports no package of the project, and reads the map by
running the file of the client's module `landmarks`.
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
"""Packages to install. OpenCV and NumPy are among their dependencies."""

try:
    import cv2
    import dlib
    import mediapipe
    import numpy as np
    from tqdm import tqdm

    # The package is only located: its import needs pkg_resources, which current setuptools lacks.
    MODELS = importlib.metadata.distribution("face-recognition-models")
except ImportError as missing:
    sys.exit(f"landmark_map: {missing.name} is missing; run: pip install {' '.join(PACKAGES)}")

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
"""Longest side of a picture in pixels; larger pictures are shrunk to save time."""

SMALLEST_CROP = 256
"""Smallest side of a crop in pixels; smaller crops are enlarged, because MediaPipe misses small faces."""

CORNERS = {36: 33, 39: 133, 42: 362, 45: 263, 48: 61, 54: 291}
"""Points and vertices of the corners of eyes and mouth. Large distances there show a failed landmarker."""

LARGEST_CORNER_DISTANCE = 0.05
"""Limit of `Face.corner_distance`: above it, a landmarker failed. Correct faces reach 0.035."""

LARGEST_TURN = 0.3
"""Limit of `Face.turn`, its value for a head turned by 30 degrees."""


@dataclasses.dataclass(frozen=True)
class Face:
    """The points of both landmarkers on one face, in pixels of the picture.

    Attributes
    ----------
    dlib_points : ndarray, shape (68, 2)
    mesh : ndarray, shape (468, 2)
        MediaPipe's mesh, without irises.
    """

    dlib_points: np.ndarray
    mesh: np.ndarray

    @property
    def scale(self) -> float:
        """Return the distance between dlib's outer eye corners in pixels."""
        return float(np.linalg.norm(self.dlib_points[45] - self.dlib_points[36]))

    @property
    def corner_distance(self) -> float:
        """Return the mean distance between the landmarkers at `CORNERS`, as a fraction of `scale`."""
        offsets = self.mesh[list(CORNERS.values())] - self.dlib_points[list(CORNERS)]
        return float(np.linalg.norm(offsets, axis=1).mean()) / self.scale

    @property
    def turn(self) -> float:
        """Return the offset of the nose tip from the middle of the eyes, in eye distances."""
        eyes = self.mesh[263] - self.mesh[33]
        nose = self.mesh[4] - (self.mesh[33] + self.mesh[263]) / 2
        return float(nose @ eyes / (eyes @ eyes))

    @property
    def category(self) -> str:
        """Return "measured" or the reason why the face is left out."""
        if self.corner_distance > LARGEST_CORNER_DISTANCE:
            return "landmarkers disagree"
        return "turned" if abs(self.turn) > LARGEST_TURN else "measured"

    def distances(self) -> np.ndarray:
        """Return the distance of each point from each vertex, ``[68, 468]``, as fractions of `scale`."""
        return np.linalg.norm(self.dlib_points[:, None] - self.mesh[None], axis=-1) / self.scale


class Landmarkers:
    """dlib's detector and 68-point predictor, and MediaPipe's face mesh in the detected boxes."""

    def __init__(self) -> None:
        self._detect = dlib.get_frontal_face_detector()
        self._predict = dlib.shape_predictor(str(MODELS.locate_file(PREDICTOR)))
        self._mesh = mediapipe.solutions.face_mesh.FaceMesh(
            static_image_mode=True, max_num_faces=5, refine_landmarks=True, min_detection_confidence=0.3
        )

    def __call__(self, picture: np.ndarray) -> Iterator[Face | None]:
        """Yield the faces that dlib finds in an RGB uint8 picture; None for a face that only dlib finds."""
        for box in self._detect(picture, 1):
            dlib_points = np.array(
                [(point.x, point.y) for point in self._predict(picture, box).parts()], float
            )
            centre, side = box.center(), max(box.width(), box.height())
            meshes = self._meshes_near(picture, (centre.x, centre.y), side)
            nearest = min(
                meshes, key=lambda mesh: np.linalg.norm(mesh.mean(0) - dlib_points.mean(0)), default=None
            )
            yield None if nearest is None else Face(dlib_points, nearest)

    def _meshes_near(self, picture: np.ndarray, centre: tuple[int, int], reach: int) -> list[np.ndarray]:
        """Find meshes in the square of side ``2 * reach`` around `centre`, in pixels of the picture."""
        padded = cv2.copyMakeBorder(picture, reach, reach, reach, reach, cv2.BORDER_REPLICATE)
        left, top = max(centre[0], 0), max(centre[1], 0)
        crop = padded[top : top + 2 * reach, left : left + 2 * reach]
        height, width = crop.shape[:2]
        enlarged = _resized(crop, max(1.0, SMALLEST_CROP / min(height, width)))
        found = self._mesh.process(np.ascontiguousarray(enlarged)).multi_face_landmarks or []
        fractions = [np.array([(point.x, point.y) for point in face.landmark]) for face in found]
        return [mesh[:468] * (width, height) + (left - reach, top - reach) for mesh in fractions]


def main() -> None:
    """Measure and write the record, or draw a picture."""
    arguments = _arguments()
    landmarkers = Landmarkers()
    vertices = arguments.vertices or client_map()
    if arguments.picture:
        draw(landmarkers, arguments.files[0], vertices, arguments.picture)
        return
    if arguments.crops:
        write_crops(landmarkers, arguments.files, arguments.frames, vertices, arguments.crops)
        return
    record = measure(landmarkers, arguments.files, arguments.frames, vertices)
    arguments.output.write_text(json.dumps(record, indent=2) + "\n")
    print({"faces": record["faces"]} | {name: figures["mean"] for name, figures in record["regions"].items()})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python benchmarks/landmark_map.py", description=__doc__)
    parser.add_argument("files", type=_readable, nargs="+", metavar="FILE", help="photographs and videos")
    parser.add_argument(
        "--frames",
        type=int,
        default=5,
        help="number of evenly spaced frames of a video (default: %(default)s)",
    )
    parser.add_argument(
        "--vertices",
        type=_vertex_map,
        metavar="V,V,...",
        help="measure another map of 68 vertices (default: the client's)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=RESULT,
        metavar="FILE.json",
        help="file of the record (default: benchmarks/results/landmark_map.json)",
    )
    parser.add_argument(
        "--picture",
        type=Path,
        metavar="FILE.png",
        help="draw the first face of the first file into this file, and measure nothing",
    )
    parser.add_argument(
        "--crops",
        type=Path,
        metavar="FILE.npz",
        help="write the measured faces as crops with the landmarks of both landmarkers, and measure nothing",
    )
    return parser.parse_args()


def _readable(text: str) -> Path:
    if not (cv2.haveImageReader(text) or cv2.VideoCapture(text).isOpened()):
        raise argparse.ArgumentTypeError(f"{text} is neither a picture nor a video that OpenCV reads")
    return Path(text)


def _vertex_map(text: str) -> list[int]:
    vertices = [int(vertex) for vertex in text.split(",")]
    if len(vertices) != 68 or not set(vertices) <= set(range(468)):
        raise argparse.ArgumentTypeError("a map is 68 vertices from 0 to 467, separated by commas")
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
    measured_by_file, without_mesh = dict.fromkeys((file.name for file in files), 0), 0
    for file, frame in tqdm(pictures, unit="picture"):
        for face in landmarkers(_read(file, frame)):
            if face is None:
                without_mesh += 1
                continue
            found[face.category].append(face)
            measured_by_file[file.name] += face.category == "measured"
    if not found["measured"]:
        sys.exit("landmark_map: both landmarkers agree on no frontal face in these files; give other files")
    return {
        "unit": "fraction of the distance between points 36 and 45, the outer eye corners",
        "faces": len(found["measured"]),
        "faces_of_file": measured_by_file,
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
    """Return the figures by region and by point; `nearest` is the vertex with the smallest mean distance."""
    distances = np.stack([face.distances() for face in faces])
    mapped, mean = distances[:, range(68), list(vertices)], distances.mean(axis=0)
    nearest = mean.argmin(axis=1)
    points = [
        {"point": point, "vertex": vertices[point]}
        | _summary(mapped[:, point])
        | {"nearest": int(nearest[point]), "nearest_mean": round(float(mean[point, nearest[point]]), 4)}
        for point in range(68)
    ]
    regions = {name: _summary(mapped[:, list(region)]) for name, region in REGIONS.items()}
    return {"regions": regions, "points": points}


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
    """Return the indices of the frames to measure; a photograph has frame 0."""
    if cv2.haveImageReader(str(file)):
        return [0]
    total = max(1.0, cv2.VideoCapture(str(file)).get(cv2.CAP_PROP_FRAME_COUNT))
    # Take the middle of each part of the video, because some files lack the last frame that they declare.
    return np.unique(((np.arange(count) + 0.5) * total / count).astype(int)).tolist()


def _read(file: Path, frame: int) -> np.ndarray:
    """Return a picture, RGB uint8 ``[H, W, 3]``, at most `LONGEST_SIDE` long."""
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
    interpolation = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return cv2.resize(picture, None, fx=factor, fy=factor, interpolation=interpolation)


CROP = 112
"""Side of a crop in pixels."""

CROP_MARGIN = 0.15
"""Margin of a crop around dlib's points on each side, as a fraction of their larger extent."""


def write_crops(
    landmarkers: Landmarkers, files: Sequence[Path], frames: int, vertices: Sequence[int], output: Path
) -> None:
    """Write the "measured" faces of `files` as input of `make parity` and `benchmarks.au_landmarks`.

    The file holds `frames` float32 ``[N, 3, 112, 112]`` in [0, 1], and in pixels of the crops float32
    ``[N, 68, 2]`` `landmarks`, dlib's, and `mapped_landmarks`, MediaPipe's; `sources` names the files.
    """
    crops: dict[str, list[Any]] = {"frames": [], "landmarks": [], "mapped_landmarks": [], "sources": []}
    pictures = [(file, frame) for file in files for frame in _frames(file, frames)]
    for file, frame in tqdm(pictures, unit="picture"):
        picture = _read(file, frame)
        for face in landmarkers(picture):
            if face is None or face.category != "measured":
                continue
            to_crop = _crop_transform(face.dlib_points)
            crop = cv2.warpAffine(picture, to_crop, (CROP, CROP), flags=cv2.INTER_AREA)
            crops["frames"].append(np.float32(crop.transpose(2, 0, 1)) / np.float32(255))
            for name, points in (
                ("landmarks", face.dlib_points),
                ("mapped_landmarks", face.mesh[list(vertices)]),
            ):
                crops[name].append(np.float32(points @ to_crop[:, :2].T + to_crop[:, 2]))
            crops["sources"].append(f"{file.name}#{frame}")
    np.savez_compressed(output, **{name: np.array(values) for name, values in crops.items()})
    print(f"{len(crops['frames'])} faces in {output}")


def _crop_transform(points: np.ndarray) -> np.ndarray:
    """Return the affine map, ``[2, 3]``, of the square around the points to a crop."""
    low, high = points.min(axis=0), points.max(axis=0)
    factor = CROP / ((1 + 2 * CROP_MARGIN) * (high - low).max())
    return np.column_stack([factor * np.eye(2), CROP / 2 - factor * (low + high) / 2])


PICTURE_SIDE = 800
"""Longer side of the drawn picture, pixels."""

DLIB_COLOUR, MAPPED_COLOUR, WHITE, DARK = (60, 230, 60), (60, 120, 255), (255, 255, 255), (40, 40, 40)
"""BGR: dlib's points are green, the mesh's orange."""


def draw(landmarkers: Landmarkers, file: Path, vertices: Sequence[int], output: Path) -> None:
    """Draw the points of both landmarkers on the first face of a file, with a line between each pair."""
    picture = _read(file, 0)
    face = next((face for face in landmarkers(picture) if face is not None), None)
    if face is None:
        sys.exit(f"landmark_map: no face of {file} is found by both landmarkers; give another file")
    canvas, corner, factor = _closeup(picture, face)
    dlib_points, mapped = (
        (points - corner) * factor for points in (face.dlib_points, face.mesh[list(vertices)])
    )
    for start, end in zip(dlib_points, mapped, strict=True):
        cv2.line(canvas, _pixel(start), _pixel(end), WHITE, 1, cv2.LINE_AA)
    for start, end in zip(dlib_points, mapped, strict=True):
        _draw_dlib_point(canvas, start)
        _draw_mapped_point(canvas, end)
    _legend(canvas)
    cv2.imwrite(str(output), canvas)


def _closeup(picture: np.ndarray, face: Face) -> tuple[np.ndarray, np.ndarray, float]:
    """Return the enlarged face in BGR, its upper left corner in `picture`, and the factor."""
    centre = (face.dlib_points.min(axis=0) + face.dlib_points.max(axis=0)) / 2
    reach = int(0.65 * np.ptp(face.dlib_points, axis=0).max())
    corner = np.maximum(centre.astype(int) - reach, 0)
    crop = picture[corner[1] : corner[1] + 2 * reach, corner[0] : corner[0] + 2 * reach]
    factor = PICTURE_SIDE / max(crop.shape[:2])
    return cv2.cvtColor(_resized(crop, factor), cv2.COLOR_RGB2BGR), corner, factor


def _draw_dlib_point(canvas: np.ndarray, point: Sequence[float]) -> None:
    for colour, width in ((DARK, 4), (DLIB_COLOUR, 2)):
        cv2.circle(canvas, _pixel(point), 6, colour, width, cv2.LINE_AA)


def _draw_mapped_point(canvas: np.ndarray, point: Sequence[float]) -> None:
    for colour, width in ((DARK, 4), (MAPPED_COLOUR, 2)):
        cv2.drawMarker(canvas, _pixel(point), colour, cv2.MARKER_TILTED_CROSS, 9, width, cv2.LINE_AA)


def _legend(canvas: np.ndarray) -> None:
    write = functools.partial(
        cv2.putText, fontFace=cv2.FONT_HERSHEY_SIMPLEX, fontScale=0.55, lineType=cv2.LINE_AA
    )
    cv2.rectangle(canvas, (8, 8), (330, 66), DARK, cv2.FILLED)
    for y, mark, text in (
        (26, _draw_dlib_point, "dlib's 68 points"),
        (50, _draw_mapped_point, "MediaPipe's mesh, mapped to 68"),
    ):
        mark(canvas, (24, y))
        write(canvas, text, (42, y + 5), color=WHITE, thickness=1)


def _pixel(point: Sequence[float]) -> tuple[int, int]:
    return round(float(point[0])), round(float(point[1]))


if __name__ == "__main__":
    main()
