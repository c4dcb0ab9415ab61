"""Synthetic faces: mirror images and reproducibility."""

import numpy as np
import torch

from export.pose.training import dataset
from tests.unit.pose_training.mean_head import project_mean_head


def test_mirrored_face_is_the_projection_of_the_mirrored_pose():
    landmarks = torch.from_numpy(project_mean_head((10, 30, -20), 50.0))[None]
    poses = torch.tensor([[10.0, 30.0, -20.0, 1.0, 2.0, 3.0]])
    both = dataset.with_mirrored(dataset.Faces(landmarks.float(), poses))
    np.testing.assert_allclose(both.landmarks[1], project_mean_head((10, -30, 20), 50.0), atol=1e-6)
    assert both.poses[1].tolist() == [10.0, -30.0, 20.0, -1.0, 2.0, 3.0]


def test_equal_seeds_give_equal_faces():
    first, again, other = (
        dataset.synthetic_faces(64, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)
    )
    assert torch.equal(first.landmarks, again.landmarks)
    assert torch.equal(first.poses, again.poses)
    assert not torch.equal(first.poses, other.poses)
    assert torch.isfinite(first.landmarks).all()
    assert (first.poses[:, 5] > 20).all(), "Z is in front of the camera"
