"""Description of the machine and packages, stored with every measured result."""

import datetime
import importlib.metadata
import os
import platform
from pathlib import Path

PACKAGES = (
    "torch",
    "numpy",
    "onnxruntime",
    "opencv-python-headless",
    "scipy",
    "scikit-image",
    "tritonclient",
)


def machine() -> dict[str, str | int]:
    """Return processor, cores, Python, package versions and the date."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
