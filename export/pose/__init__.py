"""The pose model: checkpoints, its ONNX graph, and the command that builds and checks it."""
