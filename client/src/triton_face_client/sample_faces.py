"""Faces made up for load tests: a drawn face's landmarks, moved about, over a smooth picture."""

import numpy as np

from triton_face_client.requests.faces import LANDMARKS


def sample_faces(count: int, size: int = 112, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw faces that the service answers.

    Parameters
    ----------
    count : int
        How many.
    size : int
        Side of the crops, pixels.
    seed : int
        Of the random differences between them.

    Returns
    -------
    frames : ndarray of uint8, shape (count, 3, size, size)
    landmarks : ndarray of float32, shape (count, 68, 2)
        Pixels of the frames.
    """
    generator = np.random.default_rng(seed)
    angles = generator.normal(0, 0.2, count)
    turns = np.stack([np.cos(angles), -np.sin(angles), np.sin(angles), np.cos(angles)], axis=1)
    scales = generator.uniform(0.35, 0.45, (count, 1, 1)) * size
    jitter = generator.normal(0, 0.01, (count, LANDMARKS, 2))
    landmarks = (drawn_face() + jitter) @ turns.reshape(-1, 2, 2) * scales + size / 2
    places = np.linspace(0, 2 * np.pi, size, dtype=np.float32)
    phases = generator.uniform(0, 2 * np.pi, (count, 3, 2, 1, 1)).astype(np.float32)
    waves = np.sin(3 * places[:, None] + phases[:, :, 0]) + np.sin(5 * places[None, :] + phases[:, :, 1])
    return (127.5 + 60 * waves).astype(np.uint8), landmarks.astype(np.float32)


def drawn_face() -> np.ndarray:
    """Draw 68 landmarks of a face in the iBUG order, float64 ``[68, 2]``, within -1 to 1, y down."""
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
) -> np.ndarray:
    """Return points along an ellipse, by angles from x towards y, ``[count, 2]``."""
    angles = np.linspace(start, end, count, endpoint=not closed)
    return np.array(centre) + np.array(radii) * np.stack([np.cos(angles), np.sin(angles)], axis=1)
