"""Measure one pod at many loads and write `measured.json`.

`python -m benchmarks.capacity.measure` takes 4 minutes. It starts the embedded server; `triton-face bench`
sends requests with Poisson arrivals from the same cores. Other load on the machine falsifies the rows near
the limit.
"""

import json
import re
import subprocess
import sys
import time
import urllib.request

import numpy as np
from tqdm import tqdm

from benchmarks.capacity.pod import MEASURED, WINDOW_SECONDS
from deploy.local import LocalServer
from tests.support.machine import machine

LOADS = {
    1: (100, 200, 300, 400, 600, 900, 1300, 2000),
    8: (400, 700, 900, 1100, 1600, 3000),
    32: (1000, 1600, 2200, 4000),
}
"""Offered faces per second, by faces per request."""

WARM_UP_SECONDS, COOL_DOWN_SECONDS, SAMPLE_SECONDS = 3.5, 0.5, 0.2
COUNTER = re.compile(r'^nv_inference_(\w+)\{model="(align_mask|ensemble)".*?\} (\S+)$', re.MULTILINE)


def main() -> None:
    """Measure every load and write the file."""
    with LocalServer() as server:
        loads = [(faces, offered) for faces, rates in LOADS.items() for offered in rates]
        rows = [measure(server, *load) for load in tqdm(loads, unit="load")]
        with urllib.request.urlopen(f"http://{server.http_url}/v2") as response:
            version = json.load(response)["version"]
    this_machine = machine()
    text = ",\n".join(f"    {json.dumps(row)}" for row in rows)
    head = {
        "date": this_machine["date"],
        "machine": f"{this_machine['processor']}, {this_machine['cores']} cores",
        "server": f"Triton {version}",
    }
    MEASURED.write_text(f'{json.dumps(head, indent=2)[:-2]},\n  "rows": [\n{text}\n  ]\n}}\n')


def measure(server: LocalServer, faces: int, offered: int) -> dict[str, float]:
    """Load a server and return a row of the file.

    Times are in ms, rates in faces per second. Queue, compute and pending are those of `align_mask`.
    """
    seconds = WARM_UP_SECONDS + WINDOW_SECONDS + COOL_DOWN_SECONDS
    command = [sys.executable, "-m", "triton_face_client", "bench", "--json", "--url", server.grpc_url]
    command += ["--rate", str(offered), "--batch", str(faces), "--seconds", str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as bench:
        time.sleep(WARM_UP_SECONDS)
        before, end, pending = _counters(server), time.monotonic() + WINDOW_SECONDS, []
        while time.monotonic() < end:
            time.sleep(SAMPLE_SECONDS)
            pending.append(_counters(server)["align_mask pending_request_count"])
        increase = {name: value - before.get(name, 0.0) for name, value in _counters(server).items()}
        latency = json.loads(bench.communicate()[0])["latency_ms"]
    requests = increase["align_mask request_success"]
    queue = increase["align_mask queue_duration_us"] / 1e3
    parts = ("input", "infer", "output")
    compute = sum(increase[f"align_mask compute_{part}_duration_us"] for part in parts) / 1e3
    return {
        "faces": faces,
        "offered": offered,
        "answered": round(requests * faces / WINDOW_SECONDS),
        "queue_ms": round(queue / requests, 2),
        "compute_ms": round(compute / requests, 2),
        "ratio": round(queue / compute, 2),
        "pending": round(float(np.mean(pending)), 1),
        "batch_faces": round(requests * faces / increase["align_mask exec_count"], 1),
        "p50_ms": round(latency["p50"], 1),
        "p99_ms": round(latency["p99"], 1),
        # Triton 2.51 counts a rejected ensemble request twice.
        "rejected": round(increase["ensemble request_failure"] / 2),
    }


def _counters(server: LocalServer) -> dict[str, float]:
    """Return the sums of the server's counters by model and name."""
    with urllib.request.urlopen(f"http://{server.metrics_url}/metrics") as response:
        text = response.read().decode()
    sums: dict[str, float] = {}
    for name, model, value in COUNTER.findall(text):
        sums[f"{model} {name}"] = sums.get(f"{model} {name}", 0.0) + float(value)
    return sums


if __name__ == "__main__":
    main()
