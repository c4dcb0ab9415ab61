"""What a real server answers over gRPC and HTTP, against the oracles."""

import ast
import concurrent.futures
import itertools
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from safetensors.torch import load_file
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from deploy.local import LocalServer
from export.pose_checkpoint import DEFAULT_CHECKPOINT, load_pose_checkpoint
from tests import oracles
from tests.faces import photo_faces
from tests.raw import infer
from triton_face_client import FaceFeatureClient

ALIGN_OUTPUTS = ["MASKED_FACES", "ALIGNED_FACES", "ALIGNED_LANDMARKS", "AFFINE", "MASK"]
ENSEMBLE_OUTPUTS = ["HOG", "POSE", "ALIGNED_LANDMARKS", "AFFINE", "MASK"]
EXPECTED = {
    "MASKED_FACES": ((3, 112, 112), np.float32),
    "ALIGNED_FACES": ((3, 112, 112), np.float32),
    "ALIGNED_LANDMARKS": ((68, 2), np.int64),
    "AFFINE": ((2, 3), np.float32),
    "MASK": ((112, 112), np.bool_),
    "HOG": ((5408,), np.float32),
    "POSE": ((6,), np.float32),
}

Tensors = dict[str, np.ndarray]


def infer_http(
    http: httpclient.InferenceServerClient, model: str, tensors: Tensors, outputs: list[str]
) -> Tensors:
    inputs = []
    for name, values in tensors.items():
        tensor = httpclient.InferInput(name, list(values.shape), np_to_triton_dtype(values.dtype))
        inputs.append(tensor.set_data_from_numpy(values))
    result = http.infer(model, inputs, outputs=[httpclient.InferRequestedOutput(name) for name in outputs])
    return {name: result.as_numpy(name) for name in outputs}


def executions(client: FaceFeatureClient) -> dict[str, int]:
    """Return how many faces each model has seen, once the counters, which trail the answers, stand still."""
    counts: dict[str, int] = {}
    while True:
        statistics = client.connection.get_inference_statistics()
        latest = {model.name: model.inference_count for model in statistics.model_stats}
        if latest == counts:
            return counts
        counts = latest
        time.sleep(0.1)


@pytest.mark.parametrize("count", [1, 64, 128])
def test_shapes_and_types(client: FaceFeatureClient, count: int):
    frames, landmarks = photo_faces(count, 51)
    answers = client.features(frames, landmarks, ENSEMBLE_OUTPUTS) | client.align(
        frames, landmarks, ALIGN_OUTPUTS
    )
    for name, (shape, kind) in EXPECTED.items():
        assert answers[name].shape == (count, *shape)
        assert answers[name].dtype == kind


@pytest.mark.parametrize("size", [(112, 112), (90, 140)])
def test_align_mask_is_the_oracle(client: FaceFeatureClient, size: tuple[int, int]):
    frames, landmarks = photo_faces(24, 52, size)
    answers = client.align(frames, landmarks, ALIGN_OUTPUTS)
    for face in range(24):
        matrix = oracles.affine(landmarks[face])
        np.testing.assert_array_equal(answers["AFFINE"][face], matrix.astype(np.float32))
        points = landmarks[face].astype(np.float64) @ matrix[:, :2].T + matrix[:, 2]
        np.testing.assert_array_equal(answers["ALIGNED_LANDMARKS"][face], np.trunc(points))
        mask = oracles.mask(answers["ALIGNED_LANDMARKS"][face])
        np.testing.assert_array_equal(answers["MASK"][face], mask)
        expected, certain = oracles.warped(frames[face], answers["AFFINE"][face])
        np.testing.assert_allclose(
            answers["ALIGNED_FACES"][face][:, certain], expected[:, certain], atol=2e-4
        )
        np.testing.assert_array_equal(
            answers["MASKED_FACES"][face], answers["ALIGNED_FACES"][face] * mask.astype(np.float32)
        )


def test_hog_is_that_of_the_masked_faces(client: FaceFeatureClient):
    frames, landmarks = photo_faces(60, 53)
    features = client.features(frames, landmarks, ["HOG"])["HOG"]
    masked = client.align(frames, landmarks, ["MASKED_FACES"])["MASKED_FACES"]
    expected = np.array([oracles.hog_features(face) for face in masked])
    beyond = np.abs(features - expected).max(axis=1) > 1e-5
    assert beyond.sum() <= 1  # hard bins, SPEC section 4


def test_pose_is_that_of_torch(client: FaceFeatureClient):
    checkpoint = load_pose_checkpoint(DEFAULT_CHECKPOINT)
    net = oracles.PoseNet(tuple(len(layer.bias) for layer in checkpoint.hidden), checkpoint.layout == "v2")
    net.load_state_dict(load_file(DEFAULT_CHECKPOINT))
    frames, landmarks = photo_faces(30, 54)
    expected = net.pose(landmarks, checkpoint.mean, checkpoint.std)
    np.testing.assert_allclose(client.pose(landmarks), expected, rtol=1e-5, atol=1e-5)
    ensemble = client.features(frames, landmarks, ["POSE"])["POSE"]
    np.testing.assert_array_equal(ensemble, client.pose(landmarks))


def test_http_gives_the_same_bits(client: FaceFeatureClient, http: httpclient.InferenceServerClient):
    frames, landmarks = photo_faces(5, 55)
    inputs = {"FRAMES": frames, "LANDMARKS": landmarks}
    for model, names, over_grpc in (
        ("ensemble", ENSEMBLE_OUTPUTS, client.features(frames, landmarks, ENSEMBLE_OUTPUTS)),
        ("align_mask", ALIGN_OUTPUTS, client.align(frames, landmarks, ALIGN_OUTPUTS)),
    ):
        over_http = infer_http(http, model, inputs, names)
        for name in names:
            np.testing.assert_array_equal(over_http[name], over_grpc[name])


# pose_mlp hands the landmarks on to align_mask.
NEEDED_MODELS = {
    "HOG": {"pose_mlp", "align_mask", "hog"},
    "POSE": {"pose_mlp"},
    "ALIGNED_LANDMARKS": {"pose_mlp", "align_mask"},
    "AFFINE": {"pose_mlp", "align_mask"},
    "MASK": {"pose_mlp", "align_mask"},
}


@pytest.mark.parametrize(
    "names",
    [subset for count in range(1, 6) for subset in itertools.combinations(ENSEMBLE_OUTPUTS, count)],
    ids="+".join,
)
@pytest.mark.parametrize("kind", [np.float32, np.uint8])
def test_any_subset_runs_only_what_it_needs(client: FaceFeatureClient, names: tuple[str, ...], kind: type):
    frames, landmarks = photo_faces(3, 56)
    if kind is np.uint8:
        frames = (255 * frames).astype(np.uint8)
    everything = client.features(frames, landmarks, ENSEMBLE_OUTPUTS)
    before = executions(client)
    subset = client.features(frames, landmarks, names)
    after = executions(client)
    assert tuple(subset) == names
    for name in names:
        np.testing.assert_array_equal(subset[name], everything[name])
    needed = {"ensemble"}.union(*(NEEDED_MODELS[name] for name in names))
    assert {model for model in after if after[model] > before[model]} == needed


def test_bytes_are_the_floats_they_stand_for(client: FaceFeatureClient):
    """All 256 of them; and MASKED_FACES shows the quotients' last bits."""
    frames, landmarks = photo_faces(20, 58, (120, 100))
    in_bytes = np.round(255 * frames).astype(np.uint8)
    in_bytes[0, :, :16, :16] = np.arange(256).reshape(16, 16)
    as_floats = in_bytes.astype(np.float32) / np.float32(255)
    for asked, names in ((client.features, ENSEMBLE_OUTPUTS), (client.align, ALIGN_OUTPUTS)):
        by_bytes, by_floats = asked(in_bytes, landmarks, names), asked(as_floats, landmarks, names)
        for name in names:
            np.testing.assert_array_equal(by_bytes[name], by_floats[name], err_msg=name)


@pytest.mark.parametrize("model", ["ensemble", "align_mask"])
@pytest.mark.parametrize(("given", "word"), [((), "neither"), (("FRAMES", "FRAMES_UINT8"), "both")])
def test_exactly_one_kind_of_frames(client: FaceFeatureClient, model: str, given: tuple[str, ...], word: str):
    frames, landmarks = photo_faces(2, 59)
    kinds = {"FRAMES": frames, "FRAMES_UINT8": (255 * frames).astype(np.uint8)}
    tensors = {name: kinds[name] for name in given} | {"LANDMARKS": landmarks}
    with pytest.raises(
        InferenceServerException, match=f"{word} of FRAMES and FRAMES_UINT8 given: send"
    ) as caught:
        infer(client, model, tensors, ["MASK"])
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


@pytest.mark.parametrize("name", ["FRAMES", "FRAMES_UINT8"])
def test_frames_without_landmarks(client: FaceFeatureClient, name: str):
    frames = np.zeros((2, 3, 112, 112), dtype=np.float32 if name == "FRAMES" else np.uint8)
    with pytest.raises(InferenceServerException, match="no LANDMARKS given: send FP32") as caught:
        infer(client, "align_mask", {name: frames}, ["MASK"])
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_pose_alone_needs_no_frames(client: FaceFeatureClient):
    _, landmarks = photo_faces(5, 60)
    answer = infer(client, "ensemble", {"LANDMARKS": landmarks}, ["POSE"])
    np.testing.assert_array_equal(answer["POSE"], client.pose(landmarks))


def test_same_bits_alone_and_in_a_batch_of_64(client: FaceFeatureClient):
    frames, landmarks = photo_faces(64, 57)
    together = client.features(frames, landmarks, ENSEMBLE_OUTPUTS)
    faces = client.align(frames, landmarks, ALIGN_OUTPUTS)
    for face in range(0, 64, 9):
        one = np.s_[face : face + 1]
        alone = client.features(frames[one], landmarks[one], ENSEMBLE_OUTPUTS)
        alone |= client.align(frames[one], landmarks[one], ALIGN_OUTPUTS)
        for name, values in (together | faces).items():
            np.testing.assert_array_equal(alone[name][0], values[face], err_msg=name)


def test_32_concurrent_faces_of_many_sizes_are_never_mixed(server: LocalServer):
    """Requests that share a dynamic batch, whatever their frames' size and type, each get their own face."""
    sizes = [(112, 112), (112, 112), (96, 128), (150, 120)]
    faces = [photo_faces(1, 600 + number, sizes[number % len(sizes)]) for number in range(32)]
    faces = [
        ((255 * frames).astype(np.uint8), points) if number % 3 == 0 else (frames, points)
        for number, (frames, points) in enumerate(faces)
    ]

    def answers_to(number: int) -> list[Tensors]:
        with FaceFeatureClient(server.grpc_url) as own:
            return [own.features(*faces[number], ENSEMBLE_OUTPUTS) for _ in range(6)]

    alone = [answers_to(number)[0] for number in range(32)]
    assert len({answer["HOG"].tobytes() for answer in alone}) == 32
    with FaceFeatureClient(server.grpc_url) as observer:
        before = _batches(observer)
        with concurrent.futures.ThreadPoolExecutor(32) as pool:
            together = list(pool.map(answers_to, range(32)))
        requests, executed = np.subtract(_batches(observer), before)
    assert executed < requests  # the dynamic batcher did join some
    for number, answers in enumerate(together):
        for answer in answers:
            for name in ENSEMBLE_OUTPUTS:
                np.testing.assert_array_equal(answer[name], alone[number][name])


def _batches(client: FaceFeatureClient) -> tuple[int, int]:
    model = client.connection.get_inference_statistics("align_mask").model_stats[0]
    return model.inference_count, model.execution_count


def test_the_cpu_tuning_is_warm_and_gives_the_same_bits(repository: Path, client: FaceFeatureClient):
    frames, landmarks = photo_faces(20, 61)
    expected = client.features(frames, landmarks, ENSEMBLE_OUTPUTS)
    with (
        LocalServer(repository, options=("--model-config-name=cpu",)) as tuned,
        FaceFeatureClient(tuned.grpc_url) as own,
    ):
        config = own.connection.get_model_config("align_mask").config
        faces = sum(warmup.batch_size for warmup in config.model_warmup)
        assert executions(own)["align_mask"] == config.instance_group[0].count * faces
        answers = own.features(frames, landmarks, ENSEMBLE_OUTPUTS)
    for name in ENSEMBLE_OUTPUTS:
        np.testing.assert_array_equal(answers[name], expected[name], err_msg=name)


def test_metadata_names_the_interface(server: LocalServer):
    with grpcclient.InferenceServerClient(server.grpc_url) as connection:
        metadata = connection.get_model_metadata("ensemble", as_json=True)
    assert [output["name"] for output in metadata["outputs"]] == ENSEMBLE_OUTPUTS


def test_repository_needs_nothing_from_outside(repository: Path):
    """Its Python files import the standard library, the container's packages and each other."""
    folder = repository / "align_mask" / "1"
    allowed = {"cv2", "numpy", "scipy", "skimage", "torch", "triton_python_backend_utils"}
    allowed |= {path.stem for path in folder.glob("*.py")} | set(sys.stdlib_module_names)
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert {name.split(".")[0] for name in names} <= allowed, path.name
