"""The HOG model: its ONNX graph and the command that builds and checks it."""
