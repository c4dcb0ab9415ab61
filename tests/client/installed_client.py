"""Use the installed client in an environment without this repository (run by test_distribution.py).

python installed_client.py HOST:PORT ADMIN_HEADERS_AS_JSON CROPS.npy
"""

import json
import sys

import numpy as np

from triton_face_client import FaceFeatureClient
from triton_face_client.sample_faces import sample_faces
from triton_face_client.video.crops import cut_faces


def main(url: str, headers: str, crops_file: str) -> None:
    """Compare features sent in messages and in shared memory; save crops of a random image to a file."""
    frames, landmarks = sample_faces(40)
    with FaceFeatureClient(url) as client:
        answers = client.features(frames, landmarks, ["HOG", "POSE"])
    with FaceFeatureClient(url, shm=True, headers=json.loads(headers)) as client:
        shared = client.features(frames, landmarks, ["HOG", "POSE"])
    assert answers["HOG"].shape == (40, 5408)
    assert answers["POSE"].shape == (40, 6)
    for name, values in answers.items():
        assert np.isfinite(values).all()
        np.testing.assert_array_equal(values, shared[name])
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (240, 320, 3), dtype=np.uint8)
    np.save(crops_file, cut_faces(image, generator.uniform(-20, 300, (16, 4))))


if __name__ == "__main__":
    main(*sys.argv[1:])
