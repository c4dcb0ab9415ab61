"""How tensors reach the server: in the gRPC message, in system or in CUDA shared memory."""
