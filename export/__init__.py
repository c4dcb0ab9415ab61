"""Building the ONNX models and the pose network: `python -m export`."""
