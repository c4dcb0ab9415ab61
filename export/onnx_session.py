"""Running a model that has just been built, in memory."""

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
"""These classes of onnxruntime share no base of their own."""


def run_on_cpu(model: onnx.ModelProto, inputs: np.ndarray) -> np.ndarray:
    """Return the one output of `model` for its one input."""
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        return session.run(None, {session.get_inputs()[0].name: inputs})[0]
    except ONNXRUNTIME_ERRORS as error:
        raise ExportError(f"onnxruntime cannot run the built model: {error}") from error
