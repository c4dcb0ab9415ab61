"""The HOG model: the ONNX graph, and the command that builds and checks it."""
