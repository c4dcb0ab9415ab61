"""Synthetic faces for load tests: smooth images, and the landmarks of a drawn face with random variation."""

import numpy as np
from numpy.typing import NDArray

from triton_face_client.requests.faces import LANDMARK_COUNT


def sample_faces(count: int, size: int = 112, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Draw valid faces.

    Parameters
    ----------
    count : int
        Number of faces.
    size : int
        Side of the square crops, in pixels.
    seed : int
        Seed of the random variation.

    Returns
    -------
    frames : ndarray of uint8, shape (count, 3, size, size)
    landmarks : ndarray of float32, shape (count, 68, 2)
        (x, y) in pixels of the frames.
    """
    generator = np.random.default_rng(seed)
    angles = generator.normal(0, 0.2, count)
    rotations = np.stack([np.cos(angles), -np.sin(angles), np.sin(angles), np.cos(angles)], axis=1)
    scales = generator.uniform(0.35, 0.45, (count, 1, 1)) * size
    jitter = generator.normal(0, 0.01, (count, LANDMARK_COUNT, 2))
    landmarks = (drawn_face() + jitter) @ rotations.reshape(-1, 2, 2) * scales + size / 2
    ramp = np.linspace(0, 2 * np.pi, size, dtype=np.float32)
    phases = generator.uniform(0, 2 * np.pi, (count, 3, 2, 1, 1)).astype(np.float32)
    waves = np.sin(3 * ramp[:, None] + phases[:, :, 0]) + np.sin(5 * ramp[None, :] + phases[:, :, 1])
    return (127.5 + 60 * waves).astype(np.uint8), landmarks.astype(np.float32)


def drawn_face() -> NDArray[np.float64]:
    """Return a face's 68 landmarks in iBUG order, ``[68, 2]``, (x, y) within -1 to 1, y down."""
    return np.concatenate(
        [
            _arc((0, -0.2), (0.8, 1.1), np.pi, 0, 17),  # jaw
            _arc((-0.42, -0.4), (0.25, 0.12), -np.pi, 0, 5),  # brows
            _arc((0.42, -0.4), (0.25, 0.12), -np.pi, 0, 5),
            np.stack([np.zeros(4), np.linspace(-0.25, 0.15, 4)], axis=1),  # nose
            _arc((0, 0.2), (0.18, 0.08), np.pi, 0, 5),
            _arc((-0.4, -0.2), (0.15, 0.07), -np.pi, np.pi, 6, closed=True),  # eyes
            _arc((0.4, -0.2), (0.15, 0.07), -np.pi, np.pi, 6, closed=True),
            _arc((0, 0.5), (0.35, 0.16), -np.pi, np.pi, 12, closed=True),  # lips
            _arc((0, 0.5), (0.25, 0.07), -np.pi, np.pi, 8, closed=True),
        ]
    )


def _arc(
    centre: tuple[float, float],
    radii: tuple[float, float],
    start: float,
    end: float,
    count: int,
    closed: bool = False,
) -> NDArray[np.float64]:
    """Return points along an ellipse, ``[count, 2]``; angles in radians, from x towards y."""
    angles = np.linspace(start, end, count, endpoint=not closed)
    points: NDArray[np.float64] = centre + np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii
    return points
