"""The service's computation in this process, without Triton."""

from pathlib import Path

import numpy as np
import onnxruntime
import torch
from google.protobuf import json_format

from align_mask.pipeline import process
from align_mask.settings import Settings
from align_mask.stage_clock import StageClock
from export.repository import DEFAULT_REPOSITORY, read_config

_REQUESTED = frozenset({"MASKED_FACES", "ALIGNED_LANDMARKS"})


class LocalPipeline:
    """align_mask's pipeline and the graphs of HOG, pose and action units, called one after the other.

    Parameters
    ----------
    threads : int
        Threads of PyTorch and of ONNX Runtime.
    au_repository : Path, optional
        Model repository with the model `au`, for `action_units`.
    """

    def __init__(self, threads: int, au_repository: Path | None = None) -> None:
        torch.set_num_threads(threads)
        self.settings = align_settings()
        hog_config = read_config(DEFAULT_REPOSITORY, "hog")
        self.rows_per_run = int(hog_config.parameters["cpu_rows_per_run"].string_value)
        self._hog, self._pose = (_session(DEFAULT_REPOSITORY, name, threads) for name in ("hog", "pose_mlp"))
        self._au = None if au_repository is None else _session(au_repository, "au", threads)

    def hog(self, frames: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
        """Return HOG float32 ``[N, 5408]`` of frames ``[N, 3, H, W]`` and landmarks ``[N, 68, 2]``."""
        return self.hog_and_aligned_landmarks(frames, landmarks)[0]

    def hog_and_aligned_landmarks(
        self, frames: np.ndarray, landmarks: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return HOG and ALIGNED_LANDMARKS int64 ``[N, 68, 2]`` of the arguments of `hog`."""
        faces = process(
            torch.from_numpy(frames), torch.from_numpy(landmarks), _REQUESTED, self.settings, StageClock()
        )
        masked = faces.outputs["MASKED_FACES"].numpy()
        starts = range(0, len(masked), self.rows_per_run)
        features = [
            self._hog.run(None, {"MASKED_FACES": masked[first : first + self.rows_per_run]})[0]
            for first in starts
        ]
        return np.concatenate(features), faces.outputs["ALIGNED_LANDMARKS"].numpy()

    def action_units(self, frames: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
        """Return AU float32 ``[N, K]`` of the arguments of `hog`."""
        return self.classify(*self.hog_and_aligned_landmarks(frames, landmarks))

    def classify(self, hog: np.ndarray, aligned_landmarks: np.ndarray) -> np.ndarray:
        """Return AU of HOG and ALIGNED_LANDMARKS."""
        return self._au.run(["AU"], {"HOG": hog, "ALIGNED_LANDMARKS": aligned_landmarks})[0]

    def features(self, frames: np.ndarray, landmarks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return HOG and POSE ``[N, 6]`` of the same arguments, as the ensemble does."""
        return self.hog(frames, landmarks), self._pose.run(None, {"LANDMARKS": landmarks})[0]


def align_settings() -> Settings:
    """Read align_mask's settings from its model configuration."""
    config = read_config(DEFAULT_REPOSITORY, "align_mask")
    return Settings.from_model_config(json_format.MessageToDict(config, preserving_proto_field_name=True))


def _session(repository: Path, name: str, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    path = repository / name / "1" / "model.onnx"
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
