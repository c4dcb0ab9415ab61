"""Triton on this machine without a container: the tritonserver of the package nvidia-pytriton."""

from deploy.local.errors import ServerError
from deploy.local.server import LocalServer

__all__ = ["LocalServer", "ServerError"]
