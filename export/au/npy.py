"""Decoder of NumPy's `.npy` format, without pickles and without evaluating the header.

The format is described in https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html.
"""

import math
import re

import numpy as np
from numpy.typing import NDArray

from export.au.quoting import quote
from export.errors import ExportError

_MAGIC = b"\x93NUMPY"
MAX_HEADER_BYTES = 10_000
"""NumPy writes 128 bytes for an array of numbers."""

MAX_ARRAY_BYTES = 1 << 40
"""Larger than each member of an archive, smaller than the largest array of NumPy."""

_LENGTH_BYTES = {(1, 0): 2, (2, 0): 4, (3, 0): 4}
"""Size of the header's length by format version."""

_HEADER = re.compile(
    r"\{'descr': '(?P<dtype>[<>|=][a-zA-Z]\d{0,2})', 'fortran_order': (?P<fortran>True|False), "
    r"'shape': \((?P<shape>(?:\d{1,10},)?|\d{1,10}(?:, \d{1,10}){1,3})\), \} *\n"
)


def decode_npy(data: bytes) -> NDArray[np.generic]:
    """Return the array in a `.npy` file.

    Raises
    ------
    ExportError
        If the bytes are no `.npy` file, the array holds anything but numbers or booleans, or its size differs
        from that of the data.
    """
    header, values = _split_header(data)
    match = _HEADER.fullmatch(header)
    if match is None or not re.fullmatch(r"\|b1|\|[iu]1|[<>][iu][248]|[<>]f[248]", match["dtype"]):
        if "'descr': '|O" in header:
            raise ExportError("an object array, which is a pickle; the reader reads no pickle")
        raise ExportError(f"the header {quote(header)} does not describe an array of numbers")
    dtype = np.dtype(match["dtype"])
    shape = tuple(int(length) for length in re.findall(r"\d+", match["shape"]))
    # NumPy limits the product of the other lengths even if one length is 0.
    if math.prod(max(length, 1) for length in shape) * dtype.itemsize > MAX_ARRAY_BYTES:
        raise ExportError(f"the shape {list(shape)} exceeds {MAX_ARRAY_BYTES:,} bytes")
    expected = math.prod(shape) * dtype.itemsize
    if expected != len(values):
        raise ExportError(f"the header describes {expected:,} bytes of numbers, the file has {len(values):,}")
    numbers = np.frombuffer(values, dtype)
    return numbers.reshape(shape[::-1]).T if match["fortran"] == "True" else numbers.reshape(shape)


def _split_header(data: bytes) -> tuple[str, memoryview]:
    version = (data[6], data[7]) if len(data) > 8 else (0, 0)
    if not data.startswith(_MAGIC) or version not in _LENGTH_BYTES:
        raise ExportError("not an array in NumPy's .npy format")
    start = 8 + _LENGTH_BYTES[version]
    end = start + int.from_bytes(data[8:start], "little")
    if end > len(data) or end > MAX_HEADER_BYTES:
        raise ExportError("the .npy header is truncated or too long")
    return data[start:end].decode("latin-1"), memoryview(data)[end:]
