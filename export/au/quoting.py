"""Short descriptions of values from a file of unknown origin, for error messages."""

import re
import reprlib

_REPR = reprlib.Repr()
_REPR.maxlevel = 2
_REPR.maxstring = 60
_REPR.maxlong = 60


def quote(value: object) -> str:
    """Return the representation of a value, shortened in length and in depth."""
    return _REPR.repr(value)


def quote_name(name: str) -> str:
    """Return a name as it is, or quoted if it is long or has characters that names of skops do not have."""
    return name if re.fullmatch(r"[\w.-]{1,200}", name, re.ASCII) else quote(name)
