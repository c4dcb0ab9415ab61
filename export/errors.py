"""The exception that the command line prints as a single line."""

import contextlib
from collections.abc import Iterator


class ExportError(ValueError):
    """An invalid checkpoint, option or model; the message says what to do."""


@contextlib.contextmanager
def located(place: str) -> Iterator[None]:
    """Prefix the message of an `ExportError` with the place of the error, for instance ``file: AU1: ...``."""
    try:
        yield
    except ExportError as error:
        raise ExportError(f"{place}: {error}") from error
