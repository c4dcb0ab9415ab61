"""The two sides of a comparison: py-feat in its own process, and rounds that take turns."""

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from export.pose.origin import DEFAULT_CHECKPOINT

WORKER = Path(__file__).parent / "pyfeat_worker.py"

TURN_SECONDS = 0.3
"""A turn repeats its call that long at least: both sides in the steady state, none for longer."""

SETTLE_SECONDS = 0.05
"""Idle OpenMP threads spin a little after a call; the other side must not pay for it."""

Timed = Callable[[], float]
"""Run a side once, return its seconds."""


class PeerError(RuntimeError):
    """py-feat cannot be timed."""


class PyFeat:
    """py-feat 2.1.5 from its wheel, in the environment that PYFEAT_PYTHON names.

    Parameters
    ----------
    frames : ndarray of float32, shape (N, 3, S, S)
        Crops in [0, 1].
    landmarks : ndarray of float32, shape (N, 68, 2)
        Pixels of the crops.
    device : {"cpu", "cuda"}
        Where py-feat computes; the faces lie there before the timing.
    """

    def __init__(self, frames: np.ndarray, landmarks: np.ndarray, device: str = "cpu") -> None:
        self._folder = tempfile.TemporaryDirectory()
        faces = Path(self._folder.name) / "faces.npz"
        np.savez(faces, frames=frames, landmarks=landmarks)
        self._process = subprocess.Popen(
            [os.environ["PYFEAT_PYTHON"], str(WORKER), str(faces), str(DEFAULT_CHECKPOINT), device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "PyFeat":
        """Return the peer itself."""
        return self

    def __exit__(self, *_exception: object) -> None:
        """End its process."""
        self._process.communicate()
        self._folder.cleanup()

    def seconds(self, call: str, count: int, threads: int) -> float:
        """Return the median seconds of one of the worker's calls on `count` faces, over a turn."""
        order = {"call": call, "count": count, "threads": threads, "seconds": TURN_SECONDS}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise PeerError("py-feat's process ended; what it said is above")
        return float(np.median(json.loads(answer)))


def take_turns(sides: dict[str, Timed], rounds: int) -> dict[str, np.ndarray]:
    """Time every side in every round, one after the other, after one round that is thrown away.

    A machine whose speed drifts slows both sides of a round, so compare within rounds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds + 1):
        for name, timed in sides.items():
            time.sleep(SETTLE_SECONDS)
            seconds[name].append(timed())
    return {name: np.array(values[1:]) for name, values in seconds.items()}


def timed(call: Callable[[], object]) -> Timed:
    """Make a side of a call in this process: its median seconds over a turn."""

    def run() -> float:
        seconds = []
        end = time.perf_counter() + TURN_SECONDS
        while (start := time.perf_counter()) < end:
            call()
            seconds.append(time.perf_counter() - start)
        return float(np.median(seconds))

    return run


def median_ratio(peer: np.ndarray, ours: np.ndarray) -> float:
    """Return the median over rounds of how many times as long the peer took."""
    return float(np.median(peer / ours))
