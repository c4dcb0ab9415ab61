"""Faces, the shipped network, and commands called in process."""

import argparse
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
import torch

from export.pose.network import PoseNetwork, load_network
from export.pose.origin import DEFAULT_CHECKPOINT
from export.pose.training import evaluate
from tests.unit.pose_training.mean_head import project_mean_head

LabelledFaces = tuple[np.ndarray, np.ndarray]
RunCommand = Callable[..., None]


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.fixture(scope="package")
def shipped_network() -> PoseNetwork:
    return load_network(DEFAULT_CHECKPOINT)


@pytest.fixture(scope="package")
def held_out() -> LabelledFaces:
    """Return landmarks and angles, in degrees, of held-out synthetic faces."""
    return evaluate.held_out_faces(4000)


@pytest.fixture
def labelled_faces() -> LabelledFaces:
    """Return landmarks and angles, in degrees, of three projections of the mean head."""
    angles = np.array([[0.0, 0.0, 0.0], [10.0, -40.0, 5.0], [-20.0, 66.0, 30.0]])
    return np.stack([project_mean_head(tuple(row), 60.0) * 400 + 200 for row in angles]), angles


@pytest.fixture
def run_command() -> RunCommand:
    """Return a function that runs the command of a module with options."""

    def run(module: ModuleType, *options: object) -> None:
        parser = argparse.ArgumentParser()
        module.add_arguments(parser)
        module.run(parser.parse_args([str(option) for option in options]))

    return run
