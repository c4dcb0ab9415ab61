"""Measurements: speed side by side with py-feat, equality of the masks. `make bench` runs them."""

import sys

from export.repository import DEFAULT_REPOSITORY

# The version folder of align_mask, as Triton's Python backend has it on its path.
sys.path.insert(0, str(DEFAULT_REPOSITORY / "align_mask" / "1"))
