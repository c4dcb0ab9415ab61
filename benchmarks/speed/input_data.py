"""`python -m benchmarks.speed.input_data FILE.json`: real faces as input data of perf_analyzer.

perf_analyzer's random data does not work: it fills both FRAMES and FRAMES_UINT8, which the server rejects,
and its landmarks do not form faces. These faces are crops of the demo's photograph in many poses and
positions; `data/faces_uint8.json` holds 8 of them.
"""

import argparse
import base64
import json
from pathlib import Path

import numpy as np

from tests.support.face_data import photo_faces

SEED = 8


def as_uint8(frames: np.ndarray) -> np.ndarray:
    """Convert frames in [0, 1] to uint8 for FRAMES_UINT8."""
    return np.round(255 * frames).astype(np.uint8)


def input_faces(frames_input: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut `count` crops of 112x112 with their landmarks, with the type of FRAMES or FRAMES_UINT8."""
    frames, landmarks = photo_faces(count, SEED)
    return (as_uint8(frames) if frames_input == "FRAMES_UINT8" else frames), landmarks


def write_input_data(path: Path, frames_input: str, count: int) -> None:
    """Write `input_faces` in perf_analyzer's format."""
    frames, landmarks = input_faces(frames_input, count)
    steps = [
        {frames_input: _tensor(frame), "LANDMARKS": _tensor(points)}
        for frame, points in zip(frames, landmarks, strict=True)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"data": steps}) + "\n")


def _tensor(values: np.ndarray) -> dict[str, object]:
    return {"b64": base64.b64encode(values.tobytes()).decode(), "shape": list(values.shape)}


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.input_data", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--faces", type=int, default=8, help="number of faces (default: %(default)s)")
    parser.add_argument("--fp32", action="store_true", help="write FRAMES instead of FRAMES_UINT8")
    arguments = parser.parse_args()
    write_input_data(arguments.file, "FRAMES" if arguments.fp32 else "FRAMES_UINT8", arguments.faces)


if __name__ == "__main__":
    main()
