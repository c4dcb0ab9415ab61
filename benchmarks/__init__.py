"""Measurements: speed side by side with py-feat, equality of the masks. `make bench` runs them."""

import sys
from pathlib import Path

# The version folder of align_mask, as Triton's Python backend has it on its path. Only the standard library
# is imported: `benchmarks.gpu` installs the packages first.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "model_repository" / "align_mask" / "1"))
