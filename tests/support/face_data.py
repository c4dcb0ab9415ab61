"""Test faces: random rotated and scaled crops of one photograph, and extreme landmarks."""

import numpy as np
from skimage.data import astronaut
from skimage.transform import SimilarityTransform, warp

from deploy.local.photograph import LANDMARKS_FILE

CROP = 112


def photo_faces(count: int, seed: int, size: tuple[int, int] = (CROP, CROP)) -> tuple[np.ndarray, np.ndarray]:
    """Cut `count` different face crops out of the photograph.

    Some crops extend beyond the photograph and are black there. Some aligned faces extend beyond the crop and
    contain the fill value; a jaw end may lie left of or above the crop. The landmarks have random noise.

    Returns
    -------
    frames : ndarray of float32, shape (count, 3, height, width)
        Values in [0, 1].
    landmarks : ndarray of float32, shape (count, 68, 2)
    """
    generator = np.random.default_rng(seed)
    photo = astronaut() / 255
    points = np.loadtxt(LANDMARKS_FILE, delimiter=",", skiprows=1)
    centre = points.mean(axis=0)
    height, width = size
    frames, landmarks = [], []
    for _ in range(count):
        scale = generator.uniform(0.7, 1.6) * min(size) / 110
        position = np.array([width, height]) / 2 + generator.normal(0, 0.12 * min(size), 2)
        rotation = SimilarityTransform(scale=scale, rotation=generator.normal(0, 0.4))
        to_crop = (
            SimilarityTransform(translation=-centre) + rotation + SimilarityTransform(translation=position)
        )
        frame = warp(photo, to_crop.inverse, output_shape=size, order=1)
        frames.append(frame.transpose(2, 0, 1))
        landmarks.append(to_crop(points) + generator.normal(0, 0.01 * min(size), (68, 2)))
    return np.array(frames, dtype=np.float32), np.array(landmarks, dtype=np.float32)


def extreme_landmarks(count: int, seed: int) -> np.ndarray:
    """Draw landmarks float32 ``[count, 68, 2]``, spread over 3 to 150 pixels, many outside the crop."""
    generator = np.random.default_rng(seed)
    spread = generator.choice([3, 10, 40, 90, 150], (count, 1, 1))
    centre = generator.uniform(-80, CROP + 80, (count, 1, 2))
    return (centre + spread * generator.uniform(-0.5, 0.5, (count, 68, 2))).astype(np.float32)


def extreme_aligned_landmarks(count: int, seed: int) -> np.ndarray:
    """Draw aligned landmarks int64 ``[count, 68, 2]``: tiny, huge, outside the face, jaw ends near 0."""
    generator = np.random.default_rng(seed)
    spread = generator.choice([1, 2, 5, 20, 80, 300, 5000], (count, 1, 1))
    centre = generator.uniform(-60, CROP + 60, (count, 1, 2))
    points = (centre + spread * generator.uniform(-1, 1, (count, 68, 2))).astype(np.int64)
    points[:, [0, 16]] = generator.integers(-20, CROP + 20, (count, 2, 2))
    return points
