"""The pose MLP with its normalization and its output statistics as an ONNX graph (SPEC section 5).

Landmarks go in as pixels and poses come out in radians, so that a client needs to know nothing of the
network. The layers' numbers come from a checkpoint and are stored in the model itself, not beside it.
"""

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper

from export.pose.checkpoint import EYE_CORNERS, OUTPUTS, SMALLEST_EYE_DISTANCE, PoseCheckpoint

LAYER_NORM_EPSILON = 1e-5
"""torch.nn.LayerNorm's default, with which the checkpoints were trained."""


def build_pose_graph(checkpoint: PoseCheckpoint) -> onnx.ModelProto:
    """Build LANDMARKS float32 ``[N, 68, 2]`` pixels -> POSE float32 ``[N, 6]`` and LANDMARKS_OUT.

    POSE holds Pitch, Roll, Yaw in radians and X, Y, Z, in the raw frame of SPEC section 5. A face with a
    NaN or infinite landmark gets a row that is not finite; the rows beside it are not touched. LANDMARKS_OUT
    is LANDMARKS as they came, for what has to run after this model.

    Parameters
    ----------
    checkpoint : PoseCheckpoint
        Either layout.
    """
    layers = []
    activation = "features"
    for number, layer in enumerate(checkpoint.hidden):
        normalized = layer.gain is not None
        layers.append(_hidden_layer(number, activation, normalized))
        activation = f"hidden_{number}"
    text = f"""
    <ir_version: 8, opset_import: ["": 17], producer_name: "triton-face-features">
    pose_mlp (float[N, 68, 2] LANDMARKS) => (float[N, {OUTPUTS}] POSE, float[N, 68, 2] LANDMARKS_OUT)
    <{_CONSTANTS}>
    {{
        {_NORMALIZATION}
        {"".join(layers)}
        product = MatMul ({activation}, weight)
        standardized = Add (product, bias)
        deviation = Mul (standardized, std)
        POSE = Add (deviation, mean)
        LANDMARKS_OUT = Identity (LANDMARKS)
    }}
    """
    model = onnx.parser.parse_model(text)
    for name, values in _parameters(checkpoint).items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(values, order="C"), name))
    onnx.checker.check_model(model, full_check=True)
    return model


_CONSTANTS = f"""
    int64[1] first_corner = {{{EYE_CORNERS[0]}}},
    int64[1] second_corner = {{{EYE_CORNERS[1]}}},
    float smallest_eye_distance = {{{SMALLEST_EYE_DISTANCE}}}
"""

_GELU_CONSTANTS = {
    "half": np.float32(0.5),
    "one": np.float32(1.0),
    "root_2": np.float32(np.sqrt(2)),
}

# x and y minus their means, over the distance of the outer eye corners; all x first, then all y.
_NORMALIZATION = """
    axes = Transpose <perm = [0, 2, 1]> (LANDMARKS)
    centre = ReduceMean <axes = [2]> (axes)
    centred = Sub (axes, centre)
    first = Gather <axis = 2> (axes, first_corner)
    second = Gather <axis = 2> (axes, second_corner)
    between = Sub (first, second)
    squared_distance = ReduceSumSquare <axes = [1]> (between)
    distance = Sqrt (squared_distance)
    eye_distance = Max (distance, smallest_eye_distance)
    scaled = Div (centred, eye_distance)
    features = Flatten <axis = 1> (scaled)
"""


def _hidden_layer(number: int, activation: str, normalized: bool) -> str:
    """Write one hidden layer; GELU is spelled out with Erf, which every provider has."""
    linear = f"""
        product_{number} = MatMul ({activation}, weight_{number})
        linear_{number} = Add (product_{number}, bias_{number})
    """
    if not normalized:
        return f"{linear} hidden_{number} = Relu (linear_{number})"
    return f"""{linear}
        normal_{number} = LayerNormalization <axis = -1, epsilon = {LAYER_NORM_EPSILON}> (
            linear_{number}, gain_{number}, shift_{number})
        deviations_{number} = Div (normal_{number}, root_2)
        erf_{number} = Erf (deviations_{number})
        twice_gate_{number} = Add (erf_{number}, one)
        gated_{number} = Mul (normal_{number}, twice_gate_{number})
        hidden_{number} = Mul (gated_{number}, half)
    """


def _parameters(checkpoint: PoseCheckpoint) -> dict[str, np.ndarray]:
    parameters = {
        "weight": checkpoint.weight.T,
        "bias": checkpoint.bias,
        "mean": checkpoint.mean,
        "std": checkpoint.std,
    }
    if checkpoint.layout == "v2":
        parameters |= _GELU_CONSTANTS
    for number, layer in enumerate(checkpoint.hidden):
        parameters |= {f"weight_{number}": layer.weight.T, f"bias_{number}": layer.bias}
        if layer.gain is not None:
            parameters |= {f"gain_{number}": layer.gain, f"shift_{number}": layer.shift}
    return parameters
