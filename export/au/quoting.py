"""Short descriptions of values from a file of unknown origin, for error messages."""

import reprlib

_REPR = reprlib.Repr()
_REPR.maxlevel = 2
_REPR.maxstring = 60
_REPR.maxlong = 60


def quote(value: object) -> str:
    """Return the representation of a value, shortened in length and in depth."""
    return _REPR.repr(value)
