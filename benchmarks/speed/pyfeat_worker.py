"""Time py-feat's functions in py-feat's environment; started by `pyfeat_process.py`.

The worker reads one JSON object per line, ``{"call": NAME, "count": N, "seconds": S, "threads": T}``. It
repeats the call for S seconds on the first N faces of the file named on the command line, and writes the
seconds of each repetition as a JSON list.
"""

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.speed.pyfeat_functions import load_functions


def main(device: str, faces_file: str, weights: str, au_checkpoint: str | None = None) -> None:
    """Answer commands until the input ends."""
    os.environ["FEAT_POSE_MLP_PATH"] = weights
    faces = np.load(faces_file, allow_pickle=False)
    calls = _calls(faces, device)
    limit_threads = torch.set_num_threads
    if au_checkpoint is not None:
        calls |= _classifier_calls(faces, au_checkpoint)
        limit_threads = _limit_all_threads
    for line in sys.stdin:
        command = json.loads(line)
        limit_threads(command["threads"])
        seconds = []
        with torch.inference_mode():
            end = time.perf_counter() + command["seconds"]
            while (start := time.perf_counter()) < end:
                calls[command["call"]](command["count"])
                if device == "cuda":
                    torch.cuda.synchronize()
                seconds.append(time.perf_counter() - start)
        print(json.dumps(seconds), flush=True)


def _calls(faces: dict[str, np.ndarray], device: str) -> dict[str, Callable[[int], object]]:
    face_mask, face_pose_mlp = load_functions()
    image_operations = importlib.import_module("feat.utils.image_operations")
    frames, points = (torch.from_numpy(faces[name]).to(device) for name in ("frames", "landmarks"))
    normalized = points.flatten(1) / frames.shape[-1]
    _, aligned, _ = face_mask.align_faces_batched(frames, points)

    def features(count: int) -> None:
        face_mask.extract_hog_features_batched(frames[:count], normalized[:count])
        face_pose_mlp.pose_from_landmarks_mlp(points[:count])

    return {
        "batched": lambda n: face_mask.extract_hog_features_batched(frames[:n], normalized[:n]),
        "legacy": lambda n: image_operations.extract_hog_features(frames[:n], normalized[:n]),
        "masks": lambda n: face_mask._build_full_masks_cpu_skimage(aligned[:n], frames.shape[-1]),
        "features": features,
    }


def _classifier_calls(faces: dict[str, np.ndarray], au_checkpoint: str) -> dict[str, Callable[[int], object]]:
    """Return AU of crops, as `feat.detector.Detector` computes it, and AU of HOG."""
    classifiers = importlib.import_module("benchmarks.speed.pyfeat_action_units")
    face_mask, _ = load_functions()
    frames, points = (torch.from_numpy(faces[name]) for name in ("frames", "landmarks"))
    normalized = points.flatten(1) / frames.shape[-1]
    detector = classifiers.load_detector(au_checkpoint)
    hog, aligned = face_mask.extract_hog_features_batched(frames, normalized)

    def action_units(count: int) -> None:
        some_hog, some_aligned = face_mask.extract_hog_features_batched(frames[:count], normalized[:count])
        detector.detect_au(some_hog, [some_aligned])

    return {"action_units": action_units, "classify": lambda n: detector.detect_au(hog[:n], [aligned[:n]])}


def _limit_all_threads(threads: int) -> None:
    """Limit the threads of PyTorch, NumPy, scikit-learn and XGBoost."""
    torch.set_num_threads(threads)
    importlib.import_module("threadpoolctl").threadpool_limits(threads)


if __name__ == "__main__":
    main(*sys.argv[1:])
