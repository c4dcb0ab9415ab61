"""A real Triton server on this machine, from the wheel of nvidia-pytriton, without a container."""

from deploy.local.server import LocalServer, ServerError

__all__ = ["LocalServer", "ServerError"]
