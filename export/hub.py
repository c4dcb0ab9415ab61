"""Download of checkpoints from the Hugging Face hub."""

import contextlib
import importlib
from collections.abc import Sequence
from pathlib import Path

from export.errors import ExportError


def download(repository: str, names: Sequence[str], alternative: str) -> list[Path]:
    """Download files of a repository into the hub's cache.

    Parameters
    ----------
    repository : str
        "OWNER/NAME" on the hub.
    names : sequence of str
        The files.
    alternative : str
        What to do without a hub, the end of an error's message.

    Raises
    ------
    MissingFileError
        If the hub is reachable and has no such file.
    ExportError
        If huggingface_hub is not installed, or the hub is unreachable.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise ExportError(
            f"--hub needs the package huggingface_hub: install it with pip, or {alternative}"
        ) from error
    try:
        return [Path(huggingface_hub.hf_hub_download(repository, name)) for name in names]
    except huggingface_hub.errors.RemoteEntryNotFoundError as error:
        raise MissingFileError(_message(repository, error, alternative)) from error
    except (OSError, _connection_error(), huggingface_hub.errors.HfHubHTTPError) as error:
        raise ExportError(_message(repository, error, alternative)) from error


class MissingFileError(ExportError):
    """The hub has no such file."""


def _connection_error() -> type[Exception]:
    """Return the base class of the connection errors of huggingface_hub: httpx, from version 2 on httpx2."""
    for name in ("httpx", "httpx2"):
        with contextlib.suppress(ImportError):
            return importlib.import_module(name).HTTPError
    return OSError


def _message(repository: str, error: Exception, alternative: str) -> str:
    reason = str(error).strip().splitlines()[0]
    return f"the Hugging Face hub is unreachable or has no {repository} ({reason}); {alternative}"
