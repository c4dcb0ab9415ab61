"""In one process and one thread: crops and landmarks to HOG, and the masks alone, beside py-feat."""

import numpy as np
import torch
from tqdm import tqdm

from align_mask.alignment import align
from align_mask.hull_mask import convex_hulls, hull_masks
from benchmarks.speed.local_pipeline import InProcess, align_settings
from benchmarks.speed.pyfeat_process import PyFeat, median_ratio, take_turns, timed

COUNTS = (1, 5, 20, 50, 200)
GROWTH_COUNTS = (5, 20, 50, 200, 500)

Row = dict[str, float | int]


def hog_rows(peer: PyFeat, frames: np.ndarray, landmarks: np.ndarray, rounds: int) -> list[Row]:
    """Time HOG at `COUNTS` faces against py-feat's batched and legacy paths."""
    ours = InProcess(threads=1)
    rows = []
    for count in tqdm(COUNTS, desc="HOG in process", unit="size"):
        seconds = take_turns(
            {
                "ours": timed(lambda n=count: ours.hog(frames[:n], landmarks[:n])),
                "batched": lambda n=count: peer.seconds("batched", n, 1),
                "legacy": lambda n=count: peer.seconds("legacy", n, 1),
            },
            rounds,
        )
        rows.append(_row(count, seconds))
    return rows


def mask_rows(peer: PyFeat, landmarks: np.ndarray, rounds: int) -> list[Row]:
    """Time the masks alone against the loop of scipy and scikit-image that py-feat runs on a CPU."""
    torch.set_num_threads(1)
    settings = align_settings()
    aligned = align(torch.from_numpy(landmarks), settings.face_size, settings.box_enlarge).landmarks.numpy()
    rows = []
    for count in tqdm(COUNTS, desc="masks", unit="size"):
        seconds = take_turns(
            {
                "ours": timed(lambda n=count: _masks(aligned[:n], settings.face_size)),
                "scipy_skimage": lambda n=count: peer.seconds("masks", n, 1),
            },
            rounds,
        )
        rows.append(_row(count, seconds))
    return rows


def growth_rows(frames: np.ndarray, landmarks: np.ndarray, rounds: int) -> list[Row]:
    """Time a face at `GROWTH_COUNTS` faces a call, all sizes in turn in every round."""
    ours = InProcess(threads=1)
    sides = {
        str(count): timed(lambda n=count: ours.hog(frames[:n], landmarks[:n])) for count in GROWTH_COUNTS
    }
    seconds = take_turns(sides, rounds)
    smallest = seconds[str(GROWTH_COUNTS[0])] / GROWTH_COUNTS[0]
    return [
        {
            "faces": count,
            "ours_ms": 1e3 * float(np.median(seconds[str(count)])) / count,
            "over_5_faces": median_ratio(seconds[str(count)] / count, smallest),
        }
        for count in GROWTH_COUNTS
    ]


def _masks(aligned: np.ndarray, face_size: int) -> np.ndarray:
    return hull_masks(aligned, convex_hulls(aligned), face_size)


def _row(count: int, seconds: dict[str, np.ndarray]) -> Row:
    """Return milliseconds a face of each side and how many times as long each peer took."""
    row: Row = {"faces": count}
    row |= {f"{name}_ms": 1e3 * float(np.median(values)) / count for name, values in seconds.items()}
    row |= {
        f"{name}_ratio": median_ratio(values, seconds["ours"])
        for name, values in seconds.items()
        if name != "ours"
    }
    return row
