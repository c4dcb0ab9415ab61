"""Checks without a server: the pipeline and the ONNX graphs, on the device and on the CPU."""

import contextlib
import functools
import json
import math
import subprocess
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch

from align_mask.pipeline import process
from align_mask.stage_clock import StageClock
from benchmarks.gpu.rows import SEED, TOLERANCE, Job, Row, Rows, check
from benchmarks.speed.input_data import as_uint8
from benchmarks.speed.local_pipeline import align_settings
from export.hog.graph import build_hog_graph
from export.hog.orientation import BORDER_SHIFTS, slope_ranges
from tests.support import oracles
from tests.support.face_data import CROP, photo_faces
from tests.support.machine import machine

CPU_PROVIDER, CUDA_PROVIDER = "CPUExecutionProvider", "CUDAExecutionProvider"

EXACT = ("MASK", "ALIGNED_LANDMARKS", "AFFINE")
ALIGN_OUTPUTS = frozenset({*EXACT, "MASKED_FACES"})

Outputs = dict[str, np.ndarray]


def provider(device: str) -> str:
    """Return the execution provider that every node should run on."""
    return CUDA_PROVIDER if device == "cuda" else CPU_PROVIDER


def versions(job: Job) -> Rows:
    """Name the GPU, its driver and the packages."""
    yield check("torch", torch.__version__)
    available = onnxruntime.get_available_providers()
    yield check("onnxruntime", f"{onnxruntime.__version__}: {', '.join(available)}")
    if job.device == "cuda":
        query = "--query-gpu=name,driver_version,memory.total"
        output = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader"], capture_output=True, text=True
        )
        yield check("GPU, driver, memory", (output.stdout or output.stderr).strip())
        yield check("CUDA of torch", str(torch.version.cuda))
    for name, value in machine().items():
        if name not in ("torch", "onnxruntime"):
            yield check(name, value)


@functools.cache
def session(job: Job, model: str, profile_prefix: str | None = None) -> onnxruntime.InferenceSession:
    """Load a model's graph once, with the execution provider and options of the server."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if profile_prefix:
        options.enable_profiling = True
        options.profile_file_prefix = profile_prefix
    providers: list[object] = [CPU_PROVIDER]
    if job.device == "cuda":
        accelerators = job.config(model).optimization.execution_accelerators.gpu_execution_accelerator
        cuda = {key: value for entry in accelerators for key, value in entry.parameters.items()}
        providers.insert(0, (CUDA_PROVIDER, {"device_id": "0", **cuda}))
    path = job.repository / model / "1" / "model.onnx"
    return onnxruntime.InferenceSession(str(path), options, providers=providers)


def providers(job: Job) -> Rows:
    """Check the device of the warp; profile both graphs and count the nodes on each execution provider."""
    frames, landmarks = photo_faces(8, SEED)
    pixels = torch.from_numpy(frames).to(job.device)
    faces = process(pixels, torch.from_numpy(landmarks), ALIGN_OUTPUTS, align_settings(), StageClock())
    masked = faces.outputs["MASKED_FACES"]
    yield check("warp: device", masked.device.type, job.device, masked.device.type == job.device)
    inputs = {"hog": {"MASKED_FACES": masked.cpu().numpy()}, "pose_mlp": {"LANDMARKS": landmarks}}
    for model, values in inputs.items():
        with tempfile.TemporaryDirectory() as folder:
            running = session(job, model, f"{folder}/profile")
            running.run(None, values)
            events = json.loads(Path(running.end_profiling()).read_text())
        if (options := running.get_provider_options()).get(CUDA_PROVIDER) and model == "pose_mlp":
            tf32 = options[CUDA_PROVIDER].get("use_tf32", "not given")
            yield check("pose_mlp: use_tf32", tf32, "0", tf32 == "0")
        nodes = [
            (event["args"]["provider"], event["args"]["op_name"])
            for event in events
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
        ]
        on_other = sorted({name for assigned, name in nodes if assigned != provider(job.device)})
        counts = ", ".join(f"{count} on {name}" for name, count in Counter(name for name, _ in nodes).items())
        yield check(
            f"{model}: ONNX nodes",
            f"{counts}{': ' if on_other else ''}{', '.join(on_other)}",
            f"all on {provider(job.device)}",
            bool(nodes) and not on_other,
        )


def compute_outputs(job: Job, frames: np.ndarray, landmarks: np.ndarray) -> Outputs:
    """Compute every output on the job's device, as the models do."""
    pixels = torch.from_numpy(frames).to(job.device)
    faces = process(pixels, torch.from_numpy(landmarks), ALIGN_OUTPUTS, align_settings(), StageClock())
    if faces.invalid:
        raise ValueError(f"faces of this check are invalid: {faces.invalid}")
    outputs = {name: values.cpu().numpy() for name, values in faces.outputs.items()}
    outputs["HOG"] = session(job, "hog").run(["HOG"], {"MASKED_FACES": outputs["MASKED_FACES"]})[0]
    outputs["POSE"] = session(job, "pose_mlp").run(["POSE"], {"LANDMARKS": landmarks})[0]
    return outputs


def check_faces(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut crops out of the photograph: some are blank or half blank, some jaws extend beyond the crop.

    Returns
    -------
    frames, landmarks : ndarray
        With the types and shapes of `photo_faces`.
    """
    frames, landmarks = photo_faces(count, SEED)
    frames[::16] = 0
    frames[1::16, :, :, : CROP // 2] = 0
    return frames, landmarks


def largest_differences(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return each face's largest difference; NaN counts as infinite."""
    difference = np.abs(left.astype(np.float64) - right.astype(np.float64)).reshape(len(left), -1)
    return np.nan_to_num(difference, nan=np.inf).max(axis=1)


def check_equal(what: str, left: np.ndarray, right: np.ndarray, limit: float = 0.0, allowed: int = 0) -> Row:
    """Check that at most `allowed` faces differ by more than `limit`."""
    difference = largest_differences(left, right)
    count = int((difference > limit).sum())
    measured = f"{count} of {len(left)} faces, largest {difference.max():.1e}"
    beyond = f" beyond {limit:g}" if limit else ""
    return check(what, measured, f"at most {allowed}{beyond}", count <= allowed)


def parity(job: Job) -> Rows:
    """Compare the device with the CPU path and the oracles, UINT8 with FP32, single faces with batches."""
    frames, landmarks = check_faces(job.size.faces)
    on_device = compute_outputs(job, frames, landmarks)
    on_cpu = compute_outputs(Job("cpu", job.size, job.repository), frames, landmarks)
    for name in EXACT:
        yield check_equal(f"{name} against the CPU path", on_device[name], on_cpu[name])
    compared = range(job.size.oracle_faces)
    masks = np.array([oracles.mask(on_device["ALIGNED_LANDMARKS"][face]) for face in compared])
    yield check_equal("MASK against scipy and scikit-image", on_device["MASK"][: len(compared)], masks)
    affines = np.array([oracles.affine(landmarks[face]) for face in compared])
    yield check_equal("AFFINE against float64", on_device["AFFINE"][: len(compared)], affines, 1e-4)
    three_percent = int(0.03 * len(frames))
    for name in ("MASKED_FACES", "HOG"):
        title = f"{name} against the CPU path"
        yield check_equal(title, on_device[name], on_cpu[name], TOLERANCE, three_percent)
    skimage = np.array([oracles.hog_features(on_device["MASKED_FACES"][face]) for face in compared])
    title = "HOG against scikit-image on the same masked faces"
    yield check_equal(
        title,
        on_device["HOG"][: len(compared)],
        skimage,
        TOLERANCE,
        max(1, int(0.03 * len(compared))),
    )
    blank = [(outputs["HOG"].reshape(-1, 32) == 0).all(axis=1) for outputs in (on_device, on_cpu)]
    different = int((blank[0] != blank[1]).sum())
    counted = f"{int(blank[0].sum())} blank blocks, {different} different on the CPU path"
    yield check("HOG of blank blocks", counted, "0 different", different == 0 and blank[0].any().item())
    angles = slice(0, 3)
    title = "POSE's angles against the CPU path, radians"
    yield check_equal(title, on_device["POSE"][:, angles], on_cpu["POSE"][:, angles], TOLERANCE)
    size = np.maximum(1, np.abs(on_cpu["POSE"]))
    title = "POSE's six numbers, relative"
    yield check_equal(title, on_device["POSE"] / size, on_cpu["POSE"] / size, TOLERANCE)
    uint8 = as_uint8(frames)
    floats = compute_outputs(job, np.divide(uint8, 255, dtype=np.float32), landmarks)
    from_uint8 = compute_outputs(job, uint8, landmarks)
    for name in ("MASKED_FACES", "HOG"):
        yield check_equal(f"{name} of UINT8 against FP32 / 255", from_uint8[name], floats[name])
    single_faces = [compute_outputs(job, frames[[face]], landmarks[[face]]) for face in compared[:32]]
    for name in ("MASKED_FACES", "HOG", "POSE"):
        single = np.concatenate([outputs[name] for outputs in single_faces])
        yield check_equal(f"{name}, single against batched", single, on_device[name][: len(single)])


HALF_WIDTH = 2e-6
"""Radians on each side of a border that the sweep covers; the known shifts lie below 3e-7."""


def borders(job: Job) -> Rows:
    """Compare the graph's bins with torch's atan2 on the device, on gradients around each border."""
    bin_nodes = bin_graph(job)
    for border in BORDER_SHIFTS:
        gx, gy, offset = gradients_near(border, job.size.planes, np.random.default_rng(SEED))
        reference = reference_bins(gx, gy, job.device)
        graph = graph_bins(bin_nodes, gx, gy)
        above = reference == upper_bin(border)
        shift, width = measured_shift(offset, above)
        yield {
            "border": border,
            "shift in the graph": f"{BORDER_SHIFTS[border]:.4e}",
            "shift of torch's atan2": f"{shift:.4e}",
            "width of the interval with both bins": f"{width:.1e}",
            "gradients": gx.size,
            "gradients with another bin in the graph": int((graph != reference).sum()),
        }


def gradients_near(
    border: str, planes: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw float32 gradients within `HALF_WIDTH` of a border.

    Parameters
    ----------
    border : str
        Key of `BORDER_SHIFTS`: sign of gy and orientation in degrees, as in "downward_45".
    planes : int
        Number of planes of 112 x 112 gradients.
    generator : numpy.random.Generator
        Source of the gradients.

    Returns
    -------
    gx, gy : ndarray of float32, shape (planes, 1, 112, 112)
    offset : ndarray of float64, same shape
        Angle beyond the border, radians, exact for the float32 gradients.
    """
    direction, _, degrees = border.partition("_")
    sign = 1.0 if direction == "downward" else -1.0
    # A gradient and its opposite have the same orientation.
    angle = math.radians(int(degrees))
    x, y = (round(part, 12) if abs(part) < 1e-9 else part for part in (math.cos(angle), math.sin(angle)))
    shape = (planes, 1, CROP, CROP)
    length = generator.uniform(1, 2, shape)
    turn = generator.uniform(-HALF_WIDTH, HALF_WIDTH, shape)
    gx = (sign * length * (x - turn * y)).astype(np.float32)
    gy = (sign * length * (y + turn * x)).astype(np.float32)
    distance = sign * (gy.astype(np.float64) * x - gx.astype(np.float64) * y)
    return gx, gy, distance / length


def upper_bin(border: str) -> int:
    """Return the bin that begins at a border."""
    return int(border.rpartition("_")[2]) % 180 * 8 // 180


def reference_bins(gx: np.ndarray, gy: np.ndarray, device: str) -> np.ndarray:
    """Return py-feat's bins of gradients, by torch's float32 atan2 on the device."""
    x, y = (torch.from_numpy(values).to(device) for values in (gx, gy))
    degrees = torch.rad2deg(torch.atan2(y, x)) % 180.0
    return (degrees / 22.5).long().clamp(0, 7).cpu().numpy()


def measured_shift(offset: np.ndarray, above: np.ndarray) -> tuple[float, float]:
    """Return how far below a border the bin changes and how wide the interval with both bins is, radians."""
    lowest, highest = offset[above].min(), offset[~above].max()
    return -(lowest + highest) / 2, max(0.0, highest - lowest)


def bin_graph(job: Job) -> onnxruntime.InferenceSession:
    """Extract from the HOG graph the nodes that compute a gradient's bin."""
    model = onnx.shape_inference.infer_shapes(build_hog_graph(CROP))
    outputs = ["one_if_left", *slope_ranges(8)]
    bin_model = onnx.utils.Extractor(model).extract_model(["gx", "gy"], outputs)
    execution_providers = [(provider(job.device), {})] if job.device == "cuda" else [CPU_PROVIDER]
    return onnxruntime.InferenceSession(bin_model.SerializeToString(), providers=execution_providers)


def graph_bins(bin_nodes: onnxruntime.InferenceSession, gx: np.ndarray, gy: np.ndarray) -> np.ndarray:
    """Return the bins of gradients in the HOG graph."""
    left, *slopes = bin_nodes.run(None, {"gx": gx, "gy": gy})
    rank = np.argmax(slopes, axis=0)
    return np.where(left == 1, 7 - rank, rank)


def stage_times(job: Job) -> Rows:
    """Time the stages of a batch: alignment, mask, warp, copies, HOG."""
    for faces in job.size.batches:
        frames, landmarks = photo_faces(faces, SEED)
        yield {"faces": faces, "frames": "UINT8"} | _time_stages(
            job, as_uint8(frames), torch.from_numpy(landmarks)
        )


def _time_stages(job: Job, frames: np.ndarray, landmarks: torch.Tensor) -> Row:
    hog, settings = session(job, "hog"), align_settings()
    host = torch.from_numpy(frames)
    seconds: dict[str, list[float]] = defaultdict(list)

    @contextlib.contextmanager
    def timed(name: str) -> Iterator[None]:
        _synchronize(job.device)
        start = time.perf_counter()
        yield
        _synchronize(job.device)
        seconds[name].append(time.perf_counter() - start)

    end = time.perf_counter() + job.size.seconds
    while len(seconds["total"]) < 4 or time.perf_counter() < end:
        with timed("total"):
            with timed("frames to the device"):
                pixels = host.to(job.device)
            clock = StageClock()
            with timed("warp"):
                faces = process(pixels, landmarks, ALIGN_OUTPUTS, settings, clock)
            with timed("masked faces to the host"):
                masked = faces.outputs["MASKED_FACES"].cpu().numpy()
            with timed("HOG from and to the host"):
                hog.run(["HOG"], {"MASKED_FACES": masked})
        for stage in ("align", "mask"):
            seconds[stage].append(clock.seconds[stage])
        seconds["warp"][-1] -= clock.seconds["align"] + clock.seconds["mask"]
        with timed("HOG of masked faces on the device"):
            _hog_on_device(hog, faces.outputs["MASKED_FACES"])
    # The first three rounds include the loading of kernels.
    return {
        f"{name}, ms": round(1e3 * float(np.median(durations[3:])), 3) for name, durations in seconds.items()
    }


def _hog_on_device(hog: onnxruntime.InferenceSession, masked: torch.Tensor) -> None:
    binding = hog.io_binding()
    binding.bind_input(
        "MASKED_FACES", masked.device.type, 0, np.float32, tuple(masked.shape), masked.data_ptr()
    )
    binding.bind_output("HOG", "cpu")
    hog.run_with_iobinding(binding)


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
