"""Measure one pod at the loads that the simulation is fitted to, and write `measured.json`.

`python -m benchmarks.capacity.measure` starts the embedded server and has `triton-face bench` send
requests at random moments (Poisson) at each load, in a process of its own on the same cores; 4 minutes.
Waiting and computing are `align_mask`'s, from Triton's counters over the middle of the load. Leave the
machine alone meanwhile: a load at its limit shows what else runs.
"""

import json
import re
import subprocess
import sys
import time
import urllib.request

import numpy as np
from tqdm import tqdm

from benchmarks.capacity.fit import MEASURED
from deploy.local import LocalServer
from deploy.local.server import DEFAULT_REPOSITORY, PROJECT
from tests.support.machine import machine
from triton_face_client import FaceFeatureClient

LOADS = {1: (100, 200, 300, 400, 600), 8: (400, 700, 900, 1100, 1600, 3000), 32: (1000, 1600, 2200, 4000)}
"""Faces a second that are asked for, by the faces of a request."""

BEYOND = {1: (900, 1300, 2000)}
"""The same, where the simulated pod is no model: the real one's limit is hog's queue, which it has not."""

BEFORE_SECONDS, WINDOW_SECONDS, AFTER_SECONDS = 3.5, 5.0, 0.5
"""Until the load is steady, counted, and until the load ends."""

SAMPLE_SECONDS = 0.2
"""Between two looks at how many requests wait."""

COMPUTE = ("input", "infer", "output")

COUNTER = re.compile(r'^nv_inference_(\w+)\{model="(align_mask|ensemble)"(.*?)\} (\S+)$', re.MULTILINE)

Row = dict[str, float]


def main() -> None:
    """Measure every load and write the file."""
    with LocalServer(DEFAULT_REPOSITORY) as server:
        rows, beyond = (
            [
                measure(server, faces, rate)
                for faces, rates in loads.items()
                for rate in tqdm(rates, desc=f"{faces} a request", unit="load")
            ]
            for loads in (LOADS, BEYOND)
        )
        with FaceFeatureClient(server.grpc_url) as client:
            version = client.connection.get_server_metadata().version
    here = machine()
    measured = {
        "date": here["date"],
        "machine": f"{here['processor']}, {here['cores']} cores",
        "server": f"Triton {version}",
        "load": "open loop, Poisson, 5-second windows; queue and compute are align_mask's alone; 2.51 counts "
        "a refused request twice",
        "rows": rows,
        "beyond": beyond,
    }
    lines = json.dumps(measured, indent=2)
    MEASURED.write_text(re.sub(r"\{\n\s+(\"faces\".*?)\n\s+\}", _in_one_line, lines, flags=re.DOTALL) + "\n")
    print(MEASURED.read_text())


def measure(server: LocalServer, faces: int, rate: int) -> Row:
    """Put a load on a server; return what became of it, times in milliseconds, rates in faces a second."""
    seconds = BEFORE_SECONDS + WINDOW_SECONDS + AFTER_SECONDS
    command = [sys.executable, "-m", "triton_face_client", "bench", "--json", "--url", server.grpc_url]
    options = {"--rate": rate, "--batch": faces, "--seconds": seconds}
    command += [str(word) for option in options.items() for word in option]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as bench:
        time.sleep(BEFORE_SECONDS)
        before, end = _counters(server), time.monotonic() + WINDOW_SECONDS
        waiting = []
        while time.monotonic() < end:
            time.sleep(SAMPLE_SECONDS)
            waiting.append(_counters(server)["align_mask pending_request_count"])
        grown = {name: value - before.get(name, 0.0) for name, value in _counters(server).items()}
        report = json.loads(bench.communicate()[0])
    requests = grown["align_mask request_success"]
    queue = grown["align_mask queue_duration_us"] / 1e3
    compute = sum(grown[f"align_mask compute_{part}_duration_us"] for part in COMPUTE) / 1e3
    return {
        "faces": faces,
        "offered": rate,
        "answered": round(requests * faces / WINDOW_SECONDS),
        "queue_ms": round(queue / requests, 2),
        "compute_ms": round(compute / requests, 2),
        "ratio": round(queue / compute, 2),
        "pending": round(float(np.mean(waiting)), 1),
        "batch_faces": round(requests * faces / grown["align_mask exec_count"], 1),
        "p50_ms": round(report["latency_ms"]["p50"], 1),
        "p99_ms": round(report["latency_ms"]["p99"], 1),
        "refused_counted": round(grown["ensemble request_failure"]),
    }


def _counters(server: LocalServer) -> dict[str, float]:
    """Return the sums of the server's counters by model and name."""
    with urllib.request.urlopen(f"http://{server.metrics_url}/metrics") as answer:
        text = answer.read().decode()
    sums: dict[str, float] = {}
    for name, model, _, value in COUNTER.findall(text):
        sums[f"{model} {name}"] = sums.get(f"{model} {name}", 0.0) + float(value)
    return sums


def _in_one_line(row: re.Match[str]) -> str:
    return "{" + re.sub(r"\n\s+", " ", row[1]) + "}"


if __name__ == "__main__":
    main()
