"""Decoder of UBJSON, the binary JSON in which XGBoost saves boosters: https://ubjson.org, draft 12.

Numbers are big-endian. Typed arrays, ``[$type#count`` and the numbers, become NumPy arrays.
"""

import numpy as np
from numpy.typing import NDArray

from export.au.quoting import quote
from export.errors import ExportError

MAX_DEPTH = 32
"""Nesting of lists and objects. XGBoost's models need 9."""

MAX_VALUES = 1_000_000
"""Values in a document, an array counted once. XGBoost's models have 25 for each tree."""

_NUMBERS = {"i": ">i1", "U": ">u1", "I": ">i2", "l": ">i4", "L": ">i8", "d": ">f4", "D": ">f8"}
_CONSTANTS = {"Z": None, "T": True, "F": False}


def decode_ubjson(data: bytes) -> object:
    """Return the value that a UBJSON document describes.

    Parameters
    ----------
    data : bytes
        One value without any bytes after it.

    Returns
    -------
    dict, list, ndarray, str, int, float, bool or None

    Raises
    ------
    ExportError
        If the document is truncated, nested too deeply, has a key twice or uses a type that XGBoost does not
        write. The error names the byte.
    """
    decoder = _Decoder(data)
    value = decoder.read_value(decoder.read_marker(), depth=0)
    decoder.check_end()
    return value


class _Decoder:
    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self._position = 0
        self._values = 0

    def check_end(self) -> None:
        if self._position != len(self._data):
            raise self._error(f"{len(self._data) - self._position} bytes follow the value")

    def read_marker(self) -> str:
        return chr(self._read_bytes(1)[0])

    def read_value(self, marker: str, depth: int) -> object:
        self._values += 1
        if self._values > MAX_VALUES:
            raise self._error(f"more than {MAX_VALUES:,} values")
        if marker in _CONSTANTS:
            return _CONSTANTS[marker]
        if marker in _NUMBERS:
            return self._read_numbers(marker, 1)[0].item()
        if marker == "S":
            return self._read_text()
        if marker not in "[{":
            raise self._error(f"unknown type {marker!r}")
        if depth == MAX_DEPTH:
            raise self._error(f"more than {MAX_DEPTH} lists and objects inside one another")
        return self._read_list(depth + 1) if marker == "[" else self._read_object(depth + 1)

    def _read_list(self, depth: int) -> object:
        marker = self.read_marker()
        if marker == "$":
            return self._read_typed_array()
        if marker == "#":
            count = self._read_count()
            return [self.read_value(self.read_marker(), depth) for _ in range(count)]
        values = []
        while marker != "]":
            values.append(self.read_value(marker, depth))
            marker = self.read_marker()
        return values

    def _read_typed_array(self) -> NDArray[np.generic]:
        item = self.read_marker()
        if item not in _NUMBERS:
            raise self._error(f"an array of type {item!r}")
        if self.read_marker() != "#":
            raise self._error("a typed array without count")
        return self._read_numbers(item, self._read_count())

    def _read_object(self, depth: int) -> dict[str, object]:
        values: dict[str, object] = {}
        marker = self.read_marker()
        while marker != "}":
            key = self._read_text(marker)
            if key in values:
                raise self._error(f"the key {quote(key)} occurs twice")
            values[key] = self.read_value(self.read_marker(), depth)
            marker = self.read_marker()
        return values

    def _read_text(self, marker: str | None = None) -> str:
        """Read a string; `marker` is the type of its length if that is already read."""
        try:
            return bytes(self._read_bytes(self._read_count(marker))).decode()
        except UnicodeDecodeError as error:
            raise self._error("a string is not UTF-8") from error

    def _read_count(self, marker: str | None = None) -> int:
        """Read a length. It never exceeds the remaining bytes: each counted item has one byte or more."""
        marker = marker or self.read_marker()
        if marker not in _NUMBERS or marker in "dD":
            raise self._error(f"a count of type {marker!r}")
        count = int(self._read_numbers(marker, 1)[0])
        if not 0 <= count <= len(self._data) - self._position:
            raise self._error(f"the count {count} exceeds the {len(self._data) - self._position} bytes left")
        return count

    def _read_numbers(self, marker: str, count: int) -> NDArray[np.generic]:
        dtype = np.dtype(_NUMBERS[marker])
        return np.frombuffer(self._read_bytes(count * dtype.itemsize), dtype)

    def _read_bytes(self, count: int) -> memoryview:
        end = self._position + count
        if end > len(self._data):
            raise self._error(f"{count} bytes expected, {len(self._data) - self._position} left")
        chunk = self._data[self._position : end]
        self._position = end
        return chunk

    def _error(self, problem: str) -> ExportError:
        return ExportError(f"invalid UBJSON before byte {self._position}: {problem}")
