"""Decoder of JSON text from a file of unknown origin."""

import collections
import json

from export.au.quoting import quote
from export.errors import ExportError


def decode_json(data: bytes | str) -> object:
    """Return the value of a JSON document; NaN and Infinity, which Python writes, are accepted.

    Raises
    ------
    ExportError
        If the document is invalid, nested too deeply, has a key twice or is not UTF-8.
    """
    try:
        return json.loads(data, object_pairs_hook=_as_object)
    except ExportError:
        raise
    except RecursionError as error:
        raise ExportError("invalid JSON: too many lists and objects inside one another") from error
    except ValueError as error:
        raise ExportError(f"invalid JSON: {error}") from error


def _as_object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) != len(pairs):
        counts = collections.Counter(key for key, _ in pairs)
        twice = next(key for key, count in counts.items() if count > 1)
        raise ExportError(f"invalid JSON: the key {quote(twice)} occurs twice")
    return values
