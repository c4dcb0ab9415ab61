"""`python -m benchmarks.speed.mask_equality`: compare a million masks with those of scipy and scikit-image.

Four kinds of landmark sets, a quarter each: the face of the demo's photograph, distorted, jittered and
aligned; points spread evenly over 3 to 150 pixels around a position on or off the face; all points at 3 to
12 positions; spreads from 1 to 5,000 pixels with the ends of the jaw near the face's borders. Sets on one
line have no hull and are drawn again.

`--landmarks FILE.npz` adds real faces: `landmarks` ``[N, 68, 2]`` in pixels of any frame.
`results/mask_equality.json` is the `--output` of a run with both.
"""

import argparse
import concurrent.futures
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from align_mask.alignment import align
from align_mask.face_checks import check_hulls
from align_mask.hull_mask import convex_hulls, hull_masks
from benchmarks.speed.local_pipeline import align_settings
from deploy.local.photograph import LANDMARKS_FILE
from tests.support import oracles
from tests.support.face_data import CROP, extreme_aligned_landmarks
from tests.support.machine import machine

CHUNK_SETS = 1000

Draw = Callable[[int, np.random.Generator], np.ndarray]


def main() -> int:
    """Compare; return 1 when a mask differs."""
    arguments = _arguments()
    seeds = range(arguments.sets // CHUNK_SETS)
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count()) as pool:
        counts = pool.map(_compare_seed, seeds)
        differing = sum(tqdm(counts, total=len(seeds), unit_scale=CHUNK_SETS, unit="set"))
    result = {
        "sets": len(seeds) * CHUNK_SETS,
        "differing": differing,
        "machine": machine(),
    }
    if arguments.landmarks:
        real = _aligned(np.load(arguments.landmarks, allow_pickle=False)["landmarks"])
        result |= {"real_faces": len(real), "real_faces_differing": _differing(real)}
        differing += result["real_faces_differing"]
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    print({name: value for name, value in result.items() if name != "machine"})
    return 1 if differing else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.mask_equality", description=__doc__)
    parser.add_argument(
        "--sets",
        type=_thousands,
        default=1_000_000,
        help="number of landmark sets, a multiple of 1000 (default: %(default)s)",
    )
    parser.add_argument("--landmarks", type=Path, metavar="FILE.npz", help="real faces to compare too")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="output file")
    return parser.parse_args()


def _thousands(text: str) -> int:
    count = int(text)
    if count <= 0 or count % CHUNK_SETS:
        raise argparse.ArgumentTypeError(f"{count} is not a multiple of {CHUNK_SETS}")
    return count


def _compare_seed(seed: int) -> int:
    """Draw `CHUNK_SETS` landmark sets and count the masks that differ."""
    generator = np.random.default_rng([seed, 20261122])
    torch.set_num_threads(1)
    count = CHUNK_SETS // 4
    return sum(
        _differing(_with_hull(draw, count, generator))
        for draw in (_distorted_faces, _even_spreads, _few_positions, _extremes)
    )


def _differing(landmarks: np.ndarray) -> int:
    masks = hull_masks(landmarks, convex_hulls(landmarks), CROP)
    return sum(
        not np.array_equal(mask, oracles.mask(points, CROP))
        for mask, points in zip(masks, landmarks, strict=True)
    )


def _with_hull(draw: Draw, count: int, generator: np.random.Generator) -> np.ndarray:
    """Draw aligned landmarks int64 ``[count, 68, 2]`` that are not on one line."""
    drawn = np.empty((0, 68, 2), dtype=np.int64)
    while len(drawn) < count:
        more = draw(count, generator)
        without_hull = list(check_hulls(convex_hulls(more)))
        drawn = np.concatenate([drawn, np.delete(more, without_hull, axis=0)])
    return drawn[:count]


def _aligned(landmarks: np.ndarray) -> np.ndarray:
    settings = align_settings()
    points = torch.from_numpy(np.float32(landmarks))
    return align(points, settings.face_size, settings.box_enlarge).landmarks.numpy()


def _distorted_faces(count: int, generator: np.random.Generator) -> np.ndarray:
    face = np.loadtxt(LANDMARKS_FILE, delimiter=",", skiprows=1)
    face = (face - face.mean(axis=0)) / np.ptp(face, axis=0).max()
    linear = np.eye(2) + generator.normal(0, 0.25, (count, 2, 2))
    noise = generator.normal(0, 1, (count, 68, 2)) * generator.uniform(0, 0.06, (count, 1, 1))
    return _aligned(100 * ((face + noise) @ linear))


def _even_spreads(count: int, generator: np.random.Generator) -> np.ndarray:
    spread = generator.uniform(3, 150, (count, 1, 1))
    centre = generator.uniform(-60, CROP + 60, (count, 1, 2))
    return (centre + spread * generator.uniform(-0.5, 0.5, (count, 68, 2))).astype(np.int64)


def _few_positions(count: int, generator: np.random.Generator) -> np.ndarray:
    positions = generator.integers(-40, CROP + 40, (count, 12, 2))
    chosen = generator.integers(0, generator.integers(3, 13, (count, 1)), (count, 68))
    return np.take_along_axis(positions, chosen[..., None], axis=1)


def _extremes(count: int, generator: np.random.Generator) -> np.ndarray:
    return extreme_aligned_landmarks(count, int(generator.integers(2**32)))


if __name__ == "__main__":
    sys.exit(main())
