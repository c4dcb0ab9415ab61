"""Measurements: speed and parity next to py-feat, capacity of a pod, checks on a GPU."""

import sys
from pathlib import Path

# align_mask's version folder, which Triton's Python backend adds to sys.path. This module imports only the
# standard library, because `benchmarks.gpu` installs all other packages.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "model_repository" / "align_mask" / "1"))
