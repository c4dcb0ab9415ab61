"""The pose model: checkpoints, the torch network, its ONNX export, and training."""
