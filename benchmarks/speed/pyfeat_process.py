"""py-feat in a separate process and environment; that process measures its own calls."""

import json
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.speed.alternating import CALL_SECONDS
from export.pose.origin import DEFAULT_CHECKPOINT

WORKER = Path(__file__).parent / "pyfeat_worker.py"


class PyFeatError(RuntimeError):
    """py-feat's process failed."""


class PyFeat:
    """py-feat 2.1.5 from its wheel, in the environment that PYFEAT_PYTHON names.

    Parameters
    ----------
    frames : ndarray of float32, shape (N, 3, S, S)
        Crops in [0, 1].
    landmarks : ndarray of float32, shape (N, 68, 2)
        In pixels of the crops.
    device : {"cpu", "cuda"}
        Device of the computation; the faces are copied there before the timing.
    au_checkpoint : Path, optional
        py-feat's AU classifiers, for the calls "action_units" and "classify".
    """

    def __init__(
        self,
        frames: np.ndarray,
        landmarks: np.ndarray,
        device: str = "cpu",
        au_checkpoint: Path | None = None,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory()
        faces = Path(self._folder.name) / "faces.npz"
        np.savez(faces, frames=frames, landmarks=landmarks)
        files = [faces, DEFAULT_CHECKPOINT, *([] if au_checkpoint is None else [au_checkpoint])]
        self._process = subprocess.Popen(
            [os.environ["PYFEAT_PYTHON"], str(WORKER), device, *map(str, files)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "PyFeat":
        """Return the running process."""
        return self

    def __exit__(self, *_exception: object) -> None:
        """End its process."""
        self._process.communicate()
        self._folder.cleanup()

    def seconds(self, call: str, count: int, threads: int) -> float:
        """Return the median seconds of a call of `pyfeat_worker.py` on `count` faces."""
        command = {"call": call, "count": count, "threads": threads, "seconds": CALL_SECONDS}
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise PyFeatError("py-feat's process ended; its error output is above")
        return float(np.median(json.loads(line)))
