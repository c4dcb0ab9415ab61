"""Exceptions in align_mask's computation: failing requests, metrics, and readiness of the instance.

The tests run the real model in a real stub process. Its computation raises an exception if a frame's first
pixel has a certain value, or if a file exists.
"""

import concurrent.futures
import re
import shutil
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from deploy.docker import probe
from deploy.local import LocalServer
from tests.support.face_data import photo_faces
from tests.support.injected_code import wrap_function
from tests.support.raw_requests import infer
from triton_face_client import FaceFeatureClient

RAISES_ERROR, EXHAUSTS_MEMORY = 7, 8
"""Values of a frame's first pixel that make the computation raise IndexError or run out of memory."""

COMPUTATION_ERRORS = f"""
import torch
first_pixels = args[0][:, 0, 0, 0].tolist()
if {RAISES_ERROR} in first_pixels:
    raise IndexError("index 112 is out of bounds")
if {EXHAUSTS_MEMORY} in first_pixels:
    torch.empty(2**50)
failure = Path(__file__).parents[1] / "failure"
if failure.exists():
    raise {{"cuda": RuntimeError, "bug": TypeError}}[failure.read_text()]("an illegal memory access")
"""

SAVE_READINESS = '(Path(__file__).parent / "ready").write_text(str(args[0].is_ready()))'


class Model:
    """A server with one instance of align_mask, whose computation fails on command."""

    def __init__(self, server: LocalServer, folder: Path) -> None:
        self._server = server
        self._folder = folder

    def fail_all_batches(self, kind: str | None) -> None:
        """Make every following batch raise the exception "cuda" or "bug"; None lets batches succeed."""
        (self._folder / "failure").unlink(missing_ok=True)
        if kind:
            (self._folder / "failure").write_text(kind)

    def send(self, first_pixel: int = 0, invalid: bool = False) -> np.ndarray | str:
        """Return the masked faces of a request, or its error."""
        frames, landmarks = photo_faces(2, 850)
        if invalid:
            landmarks[0] = np.nan
        frames = np.round(255 * frames).astype(np.uint8)
        frames[0, 0, 0, 0] = first_pixel
        tensors = {"FRAMES_UINT8": frames, "LANDMARKS": landmarks}
        with FaceFeatureClient(self._server.grpc_url) as client:
            try:
                return infer(client, "align_mask", tensors, ["MASKED_FACES"])["MASKED_FACES"]
            except InferenceServerException as error:
                return f"{error.status()} {error.message()}"

    def send_without_frames(self) -> str:
        """Return the error of a request that align_mask rejects before any computation."""
        with (
            FaceFeatureClient(self._server.grpc_url) as client,
            pytest.raises(InferenceServerException) as caught,
        ):
            infer(client, "align_mask", {"LANDMARKS": photo_faces(1, 850)[1]}, ["MASK"])
        return caught.value.message()

    def failed_batches(self) -> int:
        """Return the gauge of failed batches, after its next update."""
        time.sleep(2)  # longer than the interval between updates
        (found,) = re.findall(r"^align_mask_failed_batches{.*} (\d+)$", self.metrics(), re.MULTILINE)
        return int(found)

    def metrics(self) -> str:
        """Return the text of the metrics endpoint."""
        with urllib.request.urlopen(f"http://{self._server.metrics_url}/metrics") as page:
            return page.read().decode()

    def is_ready(self) -> bool:
        """Return the result of `is_ready` after the last batch."""
        return {"True": True, "False": False}[(self._folder / "ready").read_text()]


@pytest.fixture(scope="module")
def serving(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    models = shutil.copytree(repository, tmp_path_factory.mktemp("failing") / "models")
    folder = models / "align_mask" / "1"
    wrap_function(folder / "align_mask" / "pipeline.py", "process", before=COMPUTATION_ERRORS)
    wrap_function(folder / "model.py", "TritonPythonModel.execute", after=SAVE_READINESS)
    config = models / "align_mask" / "config.pbtxt"
    insert(config, "  default_queue_policy {", "  max_queue_delay_microseconds: 200000\n")
    config.write_text(config.read_text().replace("count: 2\n", "count: 1\n"))
    with LocalServer(models, models=("align_mask",)) as server:
        yield Model(server, folder)


@pytest.fixture
def model(serving: Model) -> Iterator[Model]:
    yield serving
    serving.fail_all_batches(None)
    assert isinstance(serving.send(), np.ndarray)


def insert(path: Path, before: str, text: str) -> None:
    """Insert `text` before the only occurrence of `before`."""
    assert path.read_text().count(before) == 1
    path.write_text(path.read_text().replace(before, text + before))


def test_exception_fails_only_its_own_request_of_a_batch(model: Model):
    expected = model.send()
    first_pixels = [0, RAISES_ERROR, 0, EXHAUSTS_MEMORY, 0, RAISES_ERROR, 0]
    with concurrent.futures.ThreadPoolExecutor(len(first_pixels)) as pool:
        responses = list(pool.map(model.send, first_pixels))
    for first_pixel, response in zip(first_pixels, responses, strict=True):
        if first_pixel == RAISES_ERROR:
            assert response == "StatusCode.INTERNAL index 112 is out of bounds"
        elif first_pixel == EXHAUSTS_MEMORY:
            assert response.startswith(
                "StatusCode.INTERNAL align_mask is out of memory, send fewer or smaller"
            )
        else:
            np.testing.assert_array_equal(response, expected)
    counts = re.findall(r"^nv_inference_exec_count{.*} (\d+)$", model.metrics(), re.MULTILINE)
    assert int(counts[0]) < 1 + len(first_pixels), "no two requests shared a dynamic batch"
    assert model.failed_batches() == 0
    assert model.is_ready()


def test_rejected_request_keeps_its_reason_when_the_rest_of_its_batch_fails(model: Model):
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        rejected, failed = pool.submit(model.send, invalid=True), pool.submit(model.send, RAISES_ERROR)
        assert rejected.result().startswith("StatusCode.INVALID_ARGUMENT face 0: non-finite landmark")
        assert failed.result() == "StatusCode.INTERNAL index 112 is out of bounds"


def test_out_of_memory_does_not_count_as_a_failed_batch(model: Model):
    for _ in range(probe.FAILURES + 1):
        assert "out of memory" in model.send(EXHAUSTS_MEMORY)
    assert model.failed_batches() == 0
    assert model.is_ready()


@pytest.mark.parametrize("kind", ["cuda", "bug"])
def test_instance_is_not_ready_after_three_failed_batches(model: Model, kind: str):
    model.send()
    assert model.is_ready()
    model.fail_all_batches(kind)
    for number in range(1, probe.FAILURES + 1):
        assert "illegal memory access" in model.send()
        assert model.is_ready() == (number < probe.FAILURES)
        # A request without computation leaves the count unchanged.
        assert "neither of FRAMES" in model.send_without_frames()
    assert model.failed_batches() == probe.FAILURES
    (problem,) = probe.find_problems(model.metrics(), {})
    assert problem == "align_mask_0_0 has failed 3 batches in a row"
    model.fail_all_batches(None)
    assert isinstance(model.send(), np.ndarray)
    assert model.is_ready()
    assert model.failed_batches() == 0


def test_triton_counts_the_requests_of_a_failed_batch(model: Model):
    """The alert on failing requests reads this metric."""

    def failed() -> int:
        (found,) = re.findall(
            r'^nv_inference_request_failure{model="align_mask",reason="BACKEND".*} (\d+)$',
            model.metrics(),
            re.MULTILINE,
        )
        return int(found)

    before = failed()
    model.fail_all_batches("cuda")
    model.send()
    assert failed() == before + 1
