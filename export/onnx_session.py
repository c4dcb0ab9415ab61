"""Run a model from memory, to check it before it is stored."""

import numpy as np
import onnx
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as ort

from export.errors import ExportError

ONNXRUNTIME_ERRORS = (
    ort.Fail,
    ort.InvalidArgument,
    ort.InvalidGraph,
    ort.NotImplemented,
    ort.RuntimeException,
)
"""ONNX Runtime's exceptions; they have no common base class."""


def run_on_cpu(model: onnx.ModelProto, inputs: np.ndarray) -> np.ndarray:
    """Return the first output of a model with one input."""
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        return session.run(None, {session.get_inputs()[0].name: inputs})[0]
    except ONNXRUNTIME_ERRORS as error:
        raise ExportError(f"ONNX Runtime cannot run the built model: {error}") from error
