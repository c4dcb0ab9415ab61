"""A real Triton server on this machine without a container, from the wheel of nvidia-pytriton."""

from deploy.local.errors import ServerError
from deploy.local.server import LocalServer

__all__ = ["LocalServer", "ServerError"]
