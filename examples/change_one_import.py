"""Compute py-feat's HOG features on the service by changing one import.

    python -m examples.change_one_import            # with `make serve` running, or TRITON_FACE_URL set

py-feat crops faces to tensors [N, 3, 112, 112] and detects landmarks [N, 136] as fractions of the crop.
It passes both to extract_hog_features_batched, and the features to its AU classifiers.
"""

import numpy as np
import torch
from skimage.transform import resize

from deploy.local.photograph import photograph

# Before: from feat.utils.face_mask import extract_hog_features_batched
from triton_face_client.pyfeat import extract_hog_features_batched, pose_from_landmarks_mlp

CROP_SIZE = 112


def main() -> None:
    """Send one face in py-feat's layout."""
    crop, points = photograph()
    face = torch.from_numpy(resize(crop, (3, CROP_SIZE, CROP_SIZE), anti_aliasing=True))[None].float()
    height, width = crop.shape[1:]
    landmarks = torch.from_numpy(points / np.float32([width, height])).reshape(1, 136)

    hog_features, aligned_landmarks = extract_hog_features_batched(face, landmarks)
    print("HOG features", hog_features.shape, hog_features.dtype)
    print("aligned landmarks", len(aligned_landmarks), "x", aligned_landmarks[0].shape)

    pose = pose_from_landmarks_mlp(torch.from_numpy(points)[None])
    print("raw pose, degrees", np.round(np.degrees(pose[0, :3].numpy()), 1))


if __name__ == "__main__":
    main()
