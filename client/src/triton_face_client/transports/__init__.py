"""Communication with the server: the gRPC channel, its thread, and three ways to send tensors.

Tensors travel in the gRPC message, in system shared memory or in CUDA shared memory.
"""
