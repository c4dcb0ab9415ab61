"""`python -m benchmarks.gpu.step NAME DEVICE SIZE REPOSITORY FILE`: run one step in a separate process.

A step that crashes, hangs or corrupts CUDA's state does not affect the others; FILE keeps its rows so far.
"""

import json
import sys
from pathlib import Path

import torch

from benchmarks.gpu import pipeline_checks, server_checks
from benchmarks.gpu.rows import SIZES, Job, Row
from benchmarks.speed.local_pipeline import align_settings

STEPS = {
    "versions": pipeline_checks.versions,
    "providers": pipeline_checks.providers,
    "parity": pipeline_checks.parity,
    "borders": pipeline_checks.borders,
    "shares": pipeline_checks.stage_times,
    "serving": server_checks.serving,
    "pool": server_checks.full_cuda_pool,
    "speed": server_checks.speed,
    "speed_cuda": server_checks.speed_cuda,
    "peer": server_checks.compare_with_pyfeat,
    "handover": server_checks.handover,
    "memory": server_checks.memory,
}
"""Name, as in `gpu.json` and `--steps`, of each step."""


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
