"""Running a model that has just been built, in memory."""

import numpy as np
import onnx
import onnxruntime


def run_on_cpu(model: onnx.ModelProto, inputs: np.ndarray) -> np.ndarray:
    """Return the one output of `model` for its one input."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: inputs})[0]
