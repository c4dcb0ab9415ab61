"""py-feat's outputs for the faces of a file: `python pyfeat_functions.py FACES.npz WEIGHTS OUTPUTS.npz`.

This script runs in py-feat's environment and does not import the project. Importing the package `feat` would
load detectors, plotting and video decoding, which the compared functions do not need. Therefore
`load_functions` registers empty packages in their place, with the few names that py-feat's image module
imports.
"""

import functools
import importlib.util
import os
import sys
import types
from pathlib import Path

import numpy as np
import torch


def _register_module(name: str, **names: object) -> None:
    module = types.ModuleType(name)
    vars(module).update(names)
    sys.modules[name] = module


@functools.cache
def load_functions() -> tuple[types.ModuleType, types.ModuleType]:
    """Return py-feat's modules `face_mask` and `face_pose_mlp`."""
    package = Path(importlib.util.find_spec("feat").origin).parent
    _register_module("feat", __path__=[str(package)])
    _register_module("feat.utils", __path__=[str(package / "utils")], set_torch_device=torch.device)
    _register_module("feat.utils.io", get_resource_path=lambda: str(package / "resources"))
    _register_module("feat.transforms", Rescale=None)
    _register_module("torchvision")
    _register_module("torchvision.transforms", PILToTensor=None, Compose=None)
    face_mask = importlib.import_module("feat.utils.face_mask")
    face_pose_mlp = importlib.import_module("feat.utils.face_pose_mlp")
    return face_mask, face_pose_mlp


def compute_outputs(frames: np.ndarray, landmarks: np.ndarray) -> dict[str, np.ndarray]:
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


def main(faces_file: str, weights: str, outputs_file: str) -> None:
    """Compute the outputs of one file's faces and save them to another file."""
    os.environ["FEAT_POSE_MLP_PATH"] = weights
    faces = np.load(faces_file)
    np.savez(outputs_file, **compute_outputs(faces["frames"], faces["landmarks"]))


if __name__ == "__main__":
    main(*sys.argv[1:])
