"""The decoder of UBJSON: examples of the specification and of XGBoost, and hostile documents."""

import numpy as np
import pytest

from export.au.ubjson import MAX_DEPTH, MAX_VALUES, decode_ubjson
from export.errors import ExportError


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"Z", None),
        (b"T", True),
        (b"F", False),
        (b"i\xff", -1),
        (b"U\xff", 255),
        (b"I\x01\x00", 256),
        (b"l\xff\xff\xff\xfe", -2),
        (b"L\x00\x00\x00\x01\x00\x00\x00\x00", 2**32),
        (b"d\x3f\xc0\x00\x00", 1.5),
        (b"D\x3f\xf8\x00\x00\x00\x00\x00\x00", 1.5),
        (b"SU\x03\xc3\xa9!", "é!"),
        (b"SL\x00\x00\x00\x00\x00\x00\x00\x00", ""),
        (b"[]", []),
        (b"[i\x01Z[]]", [1, None, []]),
        (b"[#i\x02i\x01T", [1, True]),
        (b"{}", {}),
        (b"{i\x01aT" + b"L\x00\x00\x00\x00\x00\x00\x00\x01bSi\x01c}", {"a": True, "b": "c"}),
    ],
)
def test_values(data: bytes, value: object):
    assert decode_ubjson(data) == value


@pytest.mark.parametrize(
    ("data", "dtype", "values"),
    [
        (b"[$d#i\x02\x3f\xc0\x00\x00\xbf\x80\x00\x00", np.float32, [1.5, -1]),
        (b"[$l#L\x00\x00\x00\x00\x00\x00\x00\x01\xff\xff\xff\xff", np.int32, [-1]),
        (b"[$U#U\x02\x00\x01", np.uint8, [0, 1]),
        (b"[$L#i\x00", np.int64, []),
    ],
)
def test_typed_arrays(data: bytes, dtype: type, values: list):
    decoded = decode_ubjson(data)
    assert decoded.dtype.newbyteorder("=") == dtype
    assert decoded.tolist() == values


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "1 bytes expected, 0 left"),
        (b"L\x00", "8 bytes expected, 1 left"),
        (b"TT", "1 bytes follow"),
        (b"H", "unknown type 'H'"),
        (b"\x00", "unknown type"),
        (b"{", "1 bytes expected"),
        (b"{i\x01aTi\x01aT}", "the key 'a' occurs twice"),
        (b"{$i#i\x01i\x01a\x01}", r"a count of type '\$'"),
        (b"Si\x02a", "the count 2 exceeds the 1 bytes left"),
        (b"Si\xff", "the count -1 exceeds"),
        (b"Sd\x3f\x80\x00\x00", "a count of type 'd'"),
        (b"Si\x01\xff", "not UTF-8"),
        (b"[$d#L\x7f\xff\xff\xff\xff\xff\xff\xff", "exceeds the 0 bytes left"),
        (b"[$d#i\x02\x00\x00\x00\x00", "8 bytes expected, 4 left"),
        (b"[$Z#L\x00\x00\x00\xff\x00\x00\x00\x00", "an array of type 'Z'"),
        (b"[$[#i\x01[]", r"an array of type '\['"),
        (b"[$di\x01", "without count"),
        (b"[#L\x00\x00\x00\xff\x00\x00\x00\x00", "exceeds the 0 bytes left"),
        (b"[" + b"Z" * MAX_VALUES + b"]", "more than 1,000,000 values"),
        (b"[" * 100_000, f"more than {MAX_DEPTH} lists"),
        (b"{i\x01a" * 100_000, f"more than {MAX_DEPTH} lists"),
        (b"[#i\x01" * 100_000, f"more than {MAX_DEPTH} lists"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damaged_or_hostile_documents_are_refused(data: bytes, problem: str):
    with pytest.raises(ExportError, match=f"invalid UBJSON before byte [0-9]+: .*{problem}"):
        decode_ubjson(data)
