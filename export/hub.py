"""Download of checkpoints from the Hugging Face hub."""

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
        import httpx
        import huggingface_hub
    except ImportError as error:
        raise ExportError(
            f"--hub needs the package huggingface_hub: install it with pip, or {alternative}"
        ) from error
    try:
        return [Path(huggingface_hub.hf_hub_download(repository, name)) for name in names]
    except huggingface_hub.errors.RemoteEntryNotFoundError as error:
        raise MissingFileError(_message(repository, error, alternative)) from error
    except (OSError, httpx.HTTPError, huggingface_hub.errors.HfHubHTTPError) as error:
        raise ExportError(_message(repository, error, alternative)) from error


class MissingFileError(ExportError):
    """The hub has no such file."""


def _message(repository: str, error: Exception, alternative: str) -> str:
    reason = str(error).strip().splitlines()[0]
    return f"the Hugging Face hub is unreachable or has no {repository} ({reason}); {alternative}"
