"""Speed in one process and one thread: HOG from crops and landmarks, masks alone; compared with py-feat."""

import numpy as np
import torch
from tqdm import tqdm

from align_mask.alignment import align
from align_mask.hull_mask import convex_hulls, hull_masks
from benchmarks.speed.alternating import alternate, median_ratio, timed
from benchmarks.speed.local_pipeline import LocalPipeline, align_settings
from benchmarks.speed.pyfeat_process import PyFeat

COUNTS = (1, 5, 20, 50, 200)
"""Faces per call of `hog_rows` and `mask_rows`."""

GROWTH_COUNTS = (5, 20, 50, 200, 500)
"""Faces per call of `growth_rows`."""

Row = dict[str, float | int]


def hog_rows(pyfeat: PyFeat, frames: np.ndarray, landmarks: np.ndarray, rounds: int) -> list[Row]:
    """Time HOG at `COUNTS` faces against py-feat's batched and legacy paths."""
    pipeline = LocalPipeline(threads=1)
    rows = []
    for count in tqdm(COUNTS, desc="HOG in process", unit="size"):
        seconds = alternate(
            {
                "service": timed(lambda n=count: pipeline.hog(frames[:n], landmarks[:n])),
                "batched": lambda n=count: pyfeat.seconds("batched", n, 1),
                "legacy": lambda n=count: pyfeat.seconds("legacy", n, 1),
            },
            rounds,
        )
        rows.append(_row(count, seconds))
    return rows


def mask_rows(pyfeat: PyFeat, landmarks: np.ndarray, rounds: int) -> list[Row]:
    """Time masks alone against py-feat's loop over scipy and scikit-image on a CPU."""
    torch.set_num_threads(1)
    settings = align_settings()
    aligned = align(torch.from_numpy(landmarks), settings.face_size, settings.box_enlarge).landmarks.numpy()
    rows = []
    for count in tqdm(COUNTS, desc="masks", unit="size"):
        seconds = alternate(
            {
                "service": timed(lambda n=count: _masks(aligned[:n], settings.face_size)),
                "scipy_skimage": lambda n=count: pyfeat.seconds("masks", n, 1),
            },
            rounds,
        )
        rows.append(_row(count, seconds))
    return rows


def growth_rows(frames: np.ndarray, landmarks: np.ndarray, rounds: int) -> list[Row]:
    """Measure the time per face at `GROWTH_COUNTS` faces per call, each size once per round."""
    pipeline = LocalPipeline(threads=1)
    measures = {
        str(count): timed(lambda n=count: pipeline.hog(frames[:n], landmarks[:n])) for count in GROWTH_COUNTS
    }
    seconds = alternate(measures, rounds)
    smallest = seconds[str(GROWTH_COUNTS[0])] / GROWTH_COUNTS[0]
    return [
        {
            "faces": count,
            "service_ms": 1e3 * float(np.median(seconds[str(count)])) / count,
            "over_5_faces": median_ratio(seconds[str(count)] / count, smallest),
        }
        for count in GROWTH_COUNTS
    ]


def _masks(aligned: np.ndarray, face_size: int) -> np.ndarray:
    return hull_masks(aligned, convex_hulls(aligned), face_size)


def _row(count: int, seconds: dict[str, np.ndarray]) -> Row:
    """Return milliseconds per face, and the ratio of each py-feat time to the service's."""
    row: Row = {"faces": count}
    row |= {f"{name}_ms": 1e3 * float(np.median(values)) / count for name, values in seconds.items()}
    row |= {
        f"{name}_ratio": median_ratio(values, seconds["service"])
        for name, values in seconds.items()
        if name != "service"
    }
    return row
