"""Run a model from memory, to check it before it is stored."""

from collections.abc import Mapping

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
    return run_with_inputs(model, {model.graph.input[0].name: inputs})[0]


def run_with_inputs(model: onnx.ModelProto, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Return the outputs of a model for inputs by name, computed in one thread on the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return session.run(None, dict(inputs))
    except ONNXRUNTIME_ERRORS as error:
        raise ExportError(f"ONNX Runtime cannot run the built model: {error}") from error
