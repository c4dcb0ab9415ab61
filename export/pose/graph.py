"""The ONNX graph of the pose model, exported from the torch network.

The graph contains the normalization of the landmarks, the network and the output statistics: it maps pixels
to radians.

`torch.onnx.export` runs with ``dynamo=False``. The newer exporter of torch 2.13 needs two more packages
(onnxscript, onnx_ir), cannot write opset 17, takes 20 times as long and stores file paths in the model. Its
angles are equal within 1e-6 rad, and its graph is no faster.
"""

import io
import warnings

import onnx
import torch
from torch import nn

from export.pose.network import PoseNetwork

OPSET = 17


class MatMulLinear(nn.Module):
    """A linear layer that is exported as MatMul and Add.

    nn.Linear is exported as Gemm with a transposed weight. ONNX Runtime's Gemm then rounds differently for
    one face than for several, so that a face's pose would depend on its batch; it is also slower.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("weight", linear.weight.detach().T.contiguous())
        self.register_buffer("bias", linear.bias.detach())

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return ``inputs @ weight + bias``."""
        return inputs @ self.weight + self.bias


class ServedNetwork(nn.Module):
    """The network with the outputs POSE and LANDMARKS_OUT of the model pose_mlp."""

    def __init__(self, network: PoseNetwork) -> None:
        super().__init__()
        layers = (MatMulLinear(layer) if isinstance(layer, nn.Linear) else layer for layer in network.net)
        self.network = PoseNetwork(nn.Sequential(*layers), network.mean, network.std)

    def forward(self, landmarks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the poses and, for the ensemble's next step, the unchanged landmarks."""
        return self.network(landmarks), landmarks.clone()


def build_pose_graph(network: PoseNetwork) -> onnx.ModelProto:
    """Export LANDMARKS float32 ``[N, 68, 2]`` -> POSE float32 ``[N, 6]`` and LANDMARKS_OUT ``[N, 68, 2]``.

    POSE holds Pitch, Roll, Yaw in radians and X, Y, Z, raw as in docs/SPEC.md, section 5. The row of a face
    with a NaN or infinite landmark is not finite; it does not affect other rows.

    Parameters
    ----------
    network : PoseNetwork
        A network of layout v1 or v2.
    """
    names = ["LANDMARKS", "POSE", "LANDMARKS_OUT"]
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            ServedNetwork(network).eval(),
            (torch.zeros(2, 68, 2),),
            buffer,
            input_names=names[:1],
            output_names=names[1:],
            dynamic_axes={name: {0: "N"} for name in names},
            opset_version=OPSET,
            dynamo=False,
        )
    model = onnx.load_from_string(buffer.getvalue())
    model.graph.name = "pose_mlp"
    onnx.checker.check_model(model, full_check=True)
    return model
