"""Checks and measurements through a real server."""

import concurrent.futures
import contextlib
import dataclasses
import itertools
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tritonclient.utils import InferenceServerException

from align_mask.pipeline import process
from align_mask.stage_clock import StageClock
from benchmarks.gpu.pipeline_checks import (
    EXACT,
    Outputs,
    check_equal,
    check_faces,
    compute_outputs,
    largest_differences,
    provider,
    session,
)
from benchmarks.gpu.rows import SEED, TOLERANCE, Job, Rows, check
from benchmarks.gpu.shared_memory import TensorClient
from benchmarks.speed.alternating import alternate, median_ratio, timed
from benchmarks.speed.load import Load, ProjectClient
from benchmarks.speed.local_pipeline import align_settings
from benchmarks.speed.pyfeat_process import PyFeat
from deploy.local import LocalServer
from tests.support.face_data import photo_faces
from tests.support.processes import resident_megabytes
from triton_face_client import FaceFeatureClient
from triton_face_client.requests.model_config import ALIGN_MASK_OUTPUTS, ENSEMBLE_OUTPUTS

POOL = 256 * 2**20
"""Bytes of Triton's CUDA pool, as deploy/docker/serve.sh sets it for the profile gpu."""

SMALL_POOL = 2**20
"""Bytes of a CUDA pool that concurrent requests fill."""

START_SECONDS = 60
"""Time limit for the imports of the client processes."""

CONNECTIONS = 8
"""Connections of a concurrent comparison."""

REQUEST_FACES = (1, 3, 8, 32)
"""Faces per request of a concurrent comparison."""

PYFEAT_FACES = 64
"""Faces per request or call of the comparison with py-feat."""

GOALS = {"message": 8000, "shared memory": 20_000}
"""Transport -> faces per second."""

PYFEAT_GOAL = 20
"""Speed relative to py-feat."""


def serve(
    job: Job, pool: int = POOL, models: tuple[str, ...] = ("*",), repository: Path | None = None
) -> LocalServer:
    """Return a server for the job's device, not started yet."""
    profile = ("--model-config-name=gpu",) if job.device == "cuda" else ()
    options = (*profile, f"--cuda-memory-pool-byte-size=0:{pool}")
    return LocalServer(repository or job.repository, options=options, models=models)


def serving(job: Job) -> Rows:
    """Start the server, read its instances' devices from its log, compare its outputs."""
    frames, landmarks = check_faces(min(64, job.size.faces))
    start = time.perf_counter()
    with serve(job) as server, FaceFeatureClient(server.grpc_url) as client:
        yield check("server ready after, s", round(time.perf_counter() - start, 1))
        log = server.log_path.read_text()
        for model in ("hog", "pose_mlp"):
            count = len(re.findall(rf"{model}\w* runs on {provider(job.device)}", log))
            wanted = job.instances(model)
            title = f"{model}: instances on {provider(job.device)}"
            yield check(title, count, f"{wanted}", count == wanted)
        on_cpu = log.count("the warp runs on the CPU")
        yield check("align_mask: instances that fell back to the CPU", on_cpu, "0", on_cpu == 0)
        served = client.features(frames, landmarks, ENSEMBLE_OUTPUTS)
        served |= client.align(frames, landmarks, ALIGN_MASK_OUTPUTS)
        for name, expected in compute_outputs(job, frames, landmarks).items():
            yield check_equal(f"{name} served against in process", served[name], expected)
        single_faces = [client.features(frames[[face]], landmarks[[face]]) for face in range(8)]
        for name in ("HOG", "POSE"):
            single = np.concatenate([outputs[name] for outputs in single_faces])
            yield check_equal(f"{name} served, single against batched", single, served[name][:8])


def full_cuda_pool(job: Job) -> Rows:
    """Send concurrent requests with a CUDA pool of 1 MB: every response must be correct or an error."""
    reference = _make_reference(job)
    with serve(job, SMALL_POOL) as server:
        for transport in _transports(job):
            yield from _verdict(
                f"pool of 1 MB, tensors in {transport}", count_responses(job, server, transport, reference)
            )


def _verdict(what: str, counts: Counter[str]) -> Rows:
    measured = ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items()))
    yield check(
        what, measured, "correct or an error, none wrong", counts["correct"] > 0 and not counts["wrong"]
    )


def _transports(job: Job) -> tuple[str, ...]:
    return ("message", "system", "cuda") if job.device == "cuda" else ("message", "system")


@dataclasses.dataclass(frozen=True)
class Reference:
    """Faces and their outputs, computed in process on the device."""

    frames: np.ndarray
    landmarks: np.ndarray
    outputs: Outputs


def _make_reference(job: Job) -> Reference:
    frames, landmarks = check_faces(2 * max(REQUEST_FACES))
    return Reference(frames, landmarks, compute_outputs(job, frames, landmarks))


def count_responses(job: Job, server: LocalServer, transport: str, reference: Reference) -> Counter[str]:
    """Send requests over several connections; count correct and wrong responses and errors."""

    def call(connection: int) -> Counter[str]:
        generator, counts = np.random.default_rng([SEED, connection]), Counter()
        with TensorClient(server.grpc_url, server.admin_headers, transport) as client:
            for _ in range(-(-job.size.requests // CONNECTIONS)):
                counts[_request(client, reference, generator)] += 1
        return counts

    with concurrent.futures.ThreadPoolExecutor(CONNECTIONS) as threads:
        return sum(threads.map(call, range(CONNECTIONS)), Counter())


def _request(client: TensorClient, reference: Reference, generator: np.random.Generator) -> str:
    count = int(generator.choice(REQUEST_FACES))
    first = int(generator.integers(0, len(reference.frames) - count + 1))
    rows = slice(first, first + count)
    model, outputs = [
        ("ensemble", ("HOG", "POSE", *EXACT)),
        ("ensemble", ("HOG",)),
        ("align_mask", ("MASKED_FACES", *EXACT)),
    ][generator.integers(3)]
    inputs = {"FRAMES": reference.frames[rows], "LANDMARKS": reference.landmarks[rows]}
    expected = {name: reference.outputs[name][rows] for name in outputs}
    try:
        received = client.infer(model, inputs, expected)
    except InferenceServerException:
        return "error"
    return (
        "correct" if all(_is_correct(name, received[name], expected[name]) for name in outputs) else "wrong"
    )


def _is_correct(name: str, received: np.ndarray | None, expected: np.ndarray) -> bool:
    if received is None or received.shape != expected.shape:
        return False
    size = np.maximum(1, np.abs(expected)) if name == "POSE" else 1
    return bool(
        (largest_differences(received / size, expected / size) <= (0 if name in EXACT else TOLERANCE)).all()
    )


def handover(job: Job) -> Rows:
    """Check and time requests whose MASKED_FACES hog reads from host or GPU memory, with three pool sizes."""
    reference = _make_reference(job)
    on_device = _repository_with_device_handover(job.repository)
    variants = [("device", on_device, POOL)]
    if job.device == "cuda":
        variants = [("host", job.repository, POOL)]
        variants += [("device", on_device, size) for size in (64 * 2**20, POOL, SMALL_POOL)]
    for location, repository, size in variants:
        with serve(job, size, repository=repository) as server, Clients(server, 1) as clients:
            counts = count_responses(job, server, "message", reference)
            counts += count_responses(job, server, "system", reference)
            yield from _verdict(f"masked faces in {location} memory, pool of {size >> 20} MB", counts)
            load = clients.run("system", "FRAMES_UINT8", job.size.batches[-1], 4, job.size.seconds)
            yield {
                "masked faces": location,
                "pool, MB": size >> 20,
                "faces per request": job.size.batches[-1],
                "faces/s": round(load.faces_per_second),
            }


def _repository_with_device_handover(repository: Path) -> Path:
    target = repository.with_name("on_device")
    shutil.copytree(repository, target)
    for path in (target / "align_mask").rglob("*.pbtxt"):
        pattern = r'(key: "masked_faces_on_device"\s*value: { string_value: )"false"'
        path.write_text(re.sub(pattern, r'\1"true"', path.read_text()))
    return target


class Clients(contextlib.AbstractContextManager):
    """Client processes that load one server at the same time."""

    def __init__(self, server: LocalServer, count: int) -> None:
        self._server = server
        self._count = count
        spawn = multiprocessing.get_context("spawn")
        self._pool = concurrent.futures.ProcessPoolExecutor(
            count, spawn, initializer=_keep_barrier, initargs=(spawn.Barrier(count, timeout=START_SECONDS),)
        )

    def __exit__(self, *_exception: object) -> None:
        """End the processes."""
        self._pool.shutdown()

    def run(self, transport: str, frames_input: str, batch: int, threads: int, seconds: float) -> Load:
        """Load the server with `threads` connections of each process.

        Returns
        -------
        Load
            Faces per second of all processes; the median of their p50 and the largest p99.
        """
        shm = {"message": False, "system": True, "cuda": "cuda"}[transport]
        client, load = (shm, self._server.admin_headers), (frames_input, batch, threads, seconds)
        task = client, (self._server.grpc_url, *load)
        loads = list(self._pool.map(_client_load, [task] * self._count))
        return Load(
            sum(load.faces_per_second for load in loads),
            float(np.median([load.p50_ms for load in loads])),
            max(load.p99_ms for load in loads),
        )


_barriers: list[threading.Barrier] = []
"""In each client process, the barrier at which all client processes wait."""


def _keep_barrier(barrier: threading.Barrier) -> None:
    _barriers.append(barrier)


def _client_load(task: tuple[tuple[bool | str, dict[str, str]], tuple[str, str, int, int, float]]) -> Load:
    """Load the server from a client process, once all of them have started."""
    client, load = task
    _barriers[0].wait()
    return ProjectClient(*client).run(*load)


def speed(job: Job) -> Rows:
    """Sweep messages and system shared memory; then break down the server's time."""
    with serve(job) as server:
        yield from _sweep(job, server, "message", GOALS["message"])
        yield from _sweep(job, server, "system", GOALS["shared memory"])
        yield from _server_time(job, server)


def speed_cuda(job: Job) -> Rows:
    """Sweep CUDA shared memory, with frames on the GPU."""
    if job.device == "cpu":
        yield check("CUDA shared memory", "needs a GPU")
        return
    with serve(job) as server:
        yield from _sweep(job, server, "cuda", GOALS["shared memory"])


def _sweep(job: Job, server: LocalServer, transport: str, goal: int) -> Rows:
    """Load the server over one transport with each number of clients, frame type and faces per request."""
    best = 0.0
    for count in job.size.clients:
        with Clients(server, count) as clients:
            for frames, batch in itertools.product(("FRAMES", "FRAMES_UINT8"), job.size.batches):
                load = clients.run(transport, frames, batch, 1 if count == 1 else 2, job.size.seconds)
                best = max(best, load.faces_per_second)
                yield {
                    "clients": count,
                    "transport": transport,
                    "frames": frames,
                    "faces per request": batch,
                    "faces/s": round(load.faces_per_second),
                    "p50, ms": round(load.p50_ms, 2),
                    "p99, ms": round(load.p99_ms, 2),
                }
    reached = None if job.device == "cpu" else best >= goal
    yield check(f"best faces/s over {transport}", round(best), f"at least {goal:,}", reached)


METRICS_SECONDS = 2.0
"""Wait until align_mask has reported its metrics to Triton."""


def _server_time(job: Job, server: LocalServer) -> Rows:
    """Load the server with 64 faces per request; yield µs per face by model and stage of align_mask."""
    before = _counters(server)
    with Clients(server, 1) as clients:
        clients.run("system", "FRAMES_UINT8", min(PYFEAT_FACES, job.size.batches[-1]), 4, job.size.seconds)
    time.sleep(METRICS_SECONDS)
    increase = {name: value - before.get(name, 0.0) for name, value in _counters(server).items()}
    faces = increase['nv_inference_count{model="hog",version="1"}']
    for name, value in sorted(increase.items()):
        if match := re.fullmatch(r'align_mask_stage_seconds_total{.*stage="(\w+)".*}', name):
            yield {"part": f"align_mask: {match[1]}", "µs per face": round(1e6 * value / faces, 1)}
        pattern = r'nv_inference_(queue|compute_\w+)_duration_us{model="(\w+)".*}'
        if match := re.fullmatch(pattern, name):
            yield {"part": f"{match[2]}: {match[1]}", "µs per face": round(value / faces, 1)}


def _counters(server: LocalServer) -> dict[str, float]:
    with urllib.request.urlopen(f"http://{server.metrics_url}/metrics") as page:
        lines = page.read().decode().splitlines()
    samples = (line.rpartition(" ") for line in lines if line and not line.startswith("#"))
    return {name: float(value) for name, _, value in samples}


def compare_with_pyfeat(job: Job) -> Rows:
    """Alternate py-feat's batched path with the service, in process and served, at 64 faces."""
    python = os.environ.setdefault("PYFEAT_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import importlib.util as i; i.find_spec('feat').origin"]).returncode:
        yield check("py-feat", "not installed in the Python of PYFEAT_PYTHON")
        return
    faces = min(PYFEAT_FACES, job.size.batches[-1])
    frames, landmarks = photo_faces(faces, SEED)
    in_process = _hog_of(job, torch.from_numpy(frames).to(job.device), torch.from_numpy(landmarks))
    with (
        serve(job) as server,
        Clients(server, job.size.clients[-1]) as clients,
        PyFeat(frames, landmarks, job.device) as pyfeat,
    ):

        def served() -> float:
            return faces / clients.run("system", "FRAMES", faces, 2, job.size.seconds).faces_per_second

        seconds = alternate(
            {
                "py-feat": lambda: pyfeat.seconds("batched", faces, len(os.sched_getaffinity(0))),
                "service in process": timed(in_process),
                "served": served,
            },
            job.size.rounds,
        )
    for name, values in seconds.items():
        ratio = median_ratio(seconds["py-feat"], values)
        yield {
            "side": name,
            "faces": faces,
            "faces/s": round(faces / float(np.median(values))),
            "times py-feat": round(ratio, 2),
        }
        if name != "py-feat":
            reached = None if job.device == "cpu" else ratio >= PYFEAT_GOAL
            yield check(f"{name}, times py-feat's speed", round(ratio, 2), f"at least {PYFEAT_GOAL}", reached)


def _hog_of(job: Job, frames: torch.Tensor, landmarks: torch.Tensor) -> Callable[[], np.ndarray]:
    """Return a function that computes HOG as the models do: masked faces to the host, HOG on the device."""
    hog, settings = session(job, "hog"), align_settings()

    def compute() -> np.ndarray:
        faces = process(frames, landmarks, frozenset({"MASKED_FACES"}), settings, StageClock())
        return hog.run(["HOG"], {"MASKED_FACES": faces.outputs["MASKED_FACES"].cpu().numpy()})[0]

    return compute


def memory(job: Job) -> Rows:
    """Measure GPU memory of each model's instances, and of all models idle and after a load."""
    largest = job.size.batches[-1]
    for model in ("align_mask", "hog", "pose_mlp") if job.device == "cuda" else ("pose_mlp",):
        before = _used_megabytes(job, None)
        with serve(job, models=(model,)) as server:
            used = _used_megabytes(job, server.pid) - before
        instances = job.instances(model)
        yield {"model": model, "instances": instances, "MB per instance": round(used / instances)}
    if job.device == "cuda":
        before = _used_megabytes(job, None)
        with serve(job) as server, Clients(server, 1) as clients:
            yield check("MB of all models at start", round(_used_megabytes(job, server.pid) - before))
            clients.run("system", "FRAMES", largest, 4, job.size.seconds)
            used = _used_megabytes(job, server.pid) - before
            yield check(f"MB of all models after requests of {largest} faces", round(used))


def _used_megabytes(job: Job, pid: int | None) -> float:
    """Return the GPU's used memory; in a dry run the resident memory of the server's processes."""
    if job.device == "cuda":
        free, total = torch.cuda.mem_get_info()
        return (total - free) / 2**20
    return resident_megabytes(pid) if pid else 0.0
