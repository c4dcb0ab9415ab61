"""Build the ONNX models; train and evaluate the pose network: `python -m export`."""
