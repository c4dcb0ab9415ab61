"""py-feat's own answers for the faces of a file: `python pyfeat_peer.py FACES.npz WEIGHTS ANSWERS.npz`.

Runs in the environment of py-feat and imports nothing of the project. py-feat's package imports detectors,
plotting and video decoding at once, and the functions compared here need none of that. So its packages are
made without running their `__init__`, and the few names that its image module takes at import are given.
"""

import importlib.util
import os
import sys
import types
from pathlib import Path

import numpy as np
import torch


def _put_module(name: str, **names: object) -> None:
    module = types.ModuleType(name)
    vars(module).update(names)
    sys.modules[name] = module


def load_functions() -> tuple[types.ModuleType, types.ModuleType]:
    """Return py-feat's modules `face_mask` and `face_pose_mlp`."""
    package = Path(importlib.util.find_spec("feat").origin).parent
    _put_module("feat", __path__=[str(package)])
    _put_module("feat.utils", __path__=[str(package / "utils")], set_torch_device=torch.device)
    _put_module("feat.utils.io", get_resource_path=lambda: str(package / "resources"))
    _put_module("feat.transforms", Rescale=None)
    _put_module("torchvision")
    _put_module("torchvision.transforms", PILToTensor=None, Compose=None)
    face_mask = importlib.import_module("feat.utils.face_mask")
    face_pose_mlp = importlib.import_module("feat.utils.face_pose_mlp")
    return face_mask, face_pose_mlp


def answers(frames: np.ndarray, landmarks: np.ndarray) -> dict[str, np.ndarray]:
    """Compute py-feat's batched path for frames ``[N, 3, S, S]`` and landmarks ``[N, 68, 2]`` in pixels."""
    face_mask, face_pose_mlp = load_functions()
    pixels, points = torch.from_numpy(frames), torch.from_numpy(landmarks)
    aligned, aligned_landmarks, affine = face_mask.align_faces_batched(pixels, points)
    masked, _ = face_mask.extract_faces_from_landmarks_batched(pixels, points)
    masks = face_mask._build_full_masks_cpu_skimage(aligned_landmarks, 112)
    normalized = points.flatten(1) / frames.shape[-1]
    hog, _ = face_mask.extract_hog_features_batched(pixels, normalized)
    return {
        "ALIGNED_FACES": aligned.numpy(),
        "ALIGNED_LANDMARKS": aligned_landmarks.numpy(),
        "AFFINE": affine.numpy(),
        "MASK": masks.numpy(),
        "MASKED_FACES": masked.numpy(),
        "HOG": hog,
        "POSE": face_pose_mlp.pose_from_landmarks_mlp(points).numpy(),
    }


def main(faces_file: str, weights: str, answers_file: str) -> None:
    """Answer the faces of one file into another."""
    os.environ["FEAT_POSE_MLP_PATH"] = weights
    faces = np.load(faces_file)
    np.savez(answers_file, **answers(faces["frames"], faces["landmarks"]))


if __name__ == "__main__":
    main(*sys.argv[1:])
