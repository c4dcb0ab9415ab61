"""`python -m benchmarks.gpu.step NAME DEVICE SIZE REPOSITORY FILE`: one step in a process of its own.

A step that crashes, hangs or leaves CUDA in a bad state harms no other, and the rows that it had made stay in
FILE.
"""

import json
import sys
from pathlib import Path

import torch

from benchmarks.gpu import pipeline_checks as in_process
from benchmarks.gpu import server_checks as serving
from benchmarks.gpu.rows import SIZES, Job, Row
from benchmarks.speed.local_pipeline import align_settings

STEPS = {
    **{name: getattr(in_process, name) for name in ("versions", "providers", "parity", "borders", "shares")},
    **{name: getattr(serving, name) for name in ("serving", "pool", "speed", "speed_cuda", "peer")},
    **{name: getattr(serving, name) for name in ("handover", "memory")},
}


def main(name: str, device: str, size: str, repository: str, file: str) -> None:
    """Run a step; print each row and keep it in the file."""
    torch.set_num_threads(align_settings().torch_threads)
    rows: list[Row] = []
    for row in STEPS[name](Job(device, SIZES[size], Path(repository))):
        rows.append(row)
        Path(file).write_text(json.dumps(rows))
        print(
            "   ", ", ".join(f"{key} {value}" for key, value in row.items() if value is not None), flush=True
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
