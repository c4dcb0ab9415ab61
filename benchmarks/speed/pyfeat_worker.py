"""py-feat as an installed peer in a process and an environment of its own, timed where it runs.

Reads one JSON object a line: ``{"call": NAME, "count": N, "seconds": S, "threads": T}``. Repeats the call
for S seconds and answers with what each took, a list. The faces are the first N of the file named on the
command line, on the device named there.
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


def main(faces_file: str, weights: str, device: str) -> None:
    """Serve timings until the input ends."""
    os.environ["FEAT_POSE_MLP_PATH"] = weights
    calls = _calls(np.load(faces_file, allow_pickle=False), device)
    for line in sys.stdin:
        order = json.loads(line)
        torch.set_num_threads(order["threads"])
        seconds = []
        with torch.inference_mode():
            end = time.perf_counter() + order["seconds"]
            while (start := time.perf_counter()) < end:
                calls[order["call"]](order["count"])
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


if __name__ == "__main__":
    main(*sys.argv[1:])
