"""What align_mask does when its computation raises: who fails, what is counted, whether it is ready.

The real model in a real stub, with a computation that raises on command: the value of a frame's first pixel,
or a file, says what.
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

GUILTY, GREEDY = 7, 8
"""First pixels of frames that cannot be computed, and that want more memory than there is."""

RAISES = f"""
import torch
marks = args[0][:, 0, 0, 0].tolist()
if {GUILTY} in marks:
    raise IndexError("index 112 is out of bounds")
if {GREEDY} in marks:
    torch.empty(2**50)
broken = Path(__file__).parents[1] / "broken"
if broken.exists():
    raise {{"cuda": RuntimeError, "bug": TypeError}}[broken.read_text()]("an illegal memory access")
"""

SAVE_READINESS = '(Path(__file__).parent / "ready").write_text(str(args[0].is_ready()))'


class Model:
    """A server of align_mask with one instance, which raises on command."""

    def __init__(self, server: LocalServer, folder: Path) -> None:
        self._server = server
        self._folder = folder

    def break_down(self, how: str | None) -> None:
        """Have each batch raise from now on, or none."""
        (self._folder / "broken").unlink(missing_ok=True)
        if how:
            (self._folder / "broken").write_text(how)

    def ask(self, first_pixel: int = 0, count: int = 2, invalid: bool = False) -> np.ndarray | str:
        """Return the masked faces of a request, or its error."""
        frames, landmarks = photo_faces(count, 850)
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

    def ask_without_frames(self) -> str:
        """Return the error of a request that the model refuses to read."""
        with (
            FaceFeatureClient(self._server.grpc_url) as client,
            pytest.raises(InferenceServerException) as caught,
        ):
            infer(client, "align_mask", {"LANDMARKS": photo_faces(1, 850)[1]}, ["MASK"])
        return caught.value.message()

    def failed_batches(self) -> int:
        """Return the gauge, when it has had time to follow."""
        time.sleep(2)  # it is updated every second
        (found,) = re.findall(r"^align_mask_failed_batches{.*} (\d+)$", self.metrics(), re.MULTILINE)
        return int(found)

    def metrics(self) -> str:
        """Return the server's metrics."""
        with urllib.request.urlopen(f"http://{self._server.metrics_url}/metrics") as answer:
            return answer.read().decode()

    def is_ready(self) -> bool:
        """Return what `is_ready` said after the last batch."""
        return {"True": True, "False": False}[(self._folder / "ready").read_text()]


@pytest.fixture(scope="module")
def serving(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    models = shutil.copytree(repository, tmp_path_factory.mktemp("raising") / "models")
    folder = models / "align_mask" / "1"
    wrap_function(folder / "align_mask" / "pipeline.py", "process", before=RAISES)
    wrap_function(folder / "model.py", "TritonPythonModel.execute", after=SAVE_READINESS)
    config = models / "align_mask" / "config.pbtxt"
    replace(config, "  default_queue_policy {", "  max_queue_delay_microseconds: 200000\n")
    config.write_text(config.read_text().replace("count: 2\n", "count: 1\n"))
    with LocalServer(models, models=("align_mask",)) as server:
        yield Model(server, folder)


@pytest.fixture
def model(serving: Model) -> Iterator[Model]:
    yield serving
    serving.break_down(None)
    assert isinstance(serving.ask(), np.ndarray)
    assert serving.failed_batches() == 0


def replace(path: Path, before: str, text: str) -> None:
    """Put a text before a place of which there is one."""
    assert path.read_text().count(before) == 1
    path.write_text(path.read_text().replace(before, text + before))


def test_only_the_guilty_of_a_batch_fail(model: Model):
    expected = model.ask()
    marks = [0, GUILTY, 0, GREEDY, 0, GUILTY, 0]
    with concurrent.futures.ThreadPoolExecutor(len(marks)) as pool:
        answers = list(pool.map(model.ask, marks))
    for mark, answer in zip(marks, answers, strict=True):
        if mark == GUILTY:
            assert answer == "StatusCode.INTERNAL index 112 is out of bounds"
        elif mark == GREEDY:
            assert answer.startswith("StatusCode.INTERNAL align_mask is out of memory, send fewer or smaller")
        else:
            np.testing.assert_array_equal(answer, expected)
    counts = re.findall(r"^nv_inference_exec_count{.*} (\d+)$", model.metrics(), re.MULTILINE)
    assert int(counts[0]) < 1 + len(marks), "some were joined"
    assert model.failed_batches() == 0
    assert model.is_ready()


def test_a_refused_request_keeps_its_reason_beside_one_that_fails(model: Model):
    """They share a batch in which nobody is answered."""
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        refused, failed = pool.submit(model.ask, invalid=True), pool.submit(model.ask, GUILTY)
        assert refused.result().startswith("StatusCode.INVALID_ARGUMENT face 0: non-finite landmark")
        assert failed.result() == "StatusCode.INTERNAL index 112 is out of bounds"


def test_requests_that_want_too_much_memory_do_not_count(model: Model):
    for _ in range(probe.FAILURES + 1):
        assert "out of memory" in model.ask(GREEDY)
    assert model.failed_batches() == 0
    assert model.is_ready()


@pytest.mark.parametrize("how", ["cuda", "bug"])
def test_an_instance_whose_batches_all_fail_is_not_ready(model: Model, how: str):
    model.ask()
    assert model.is_ready()
    model.break_down(how)
    for number in range(1, probe.FAILURES + 1):
        assert "illegal memory access" in model.ask()
        assert model.is_ready() == (number < probe.FAILURES)
        # A request that reaches no computation says nothing of it.
        assert "neither of FRAMES" in model.ask_without_frames()
    assert model.failed_batches() == probe.FAILURES
    (trouble,) = probe.troubles(model.metrics(), {})
    assert trouble == "align_mask_0_0 has failed 3 batches in a row"
    model.break_down(None)
    assert isinstance(model.ask(), np.ndarray)
    assert model.is_ready()
    assert model.failed_batches() == 0


def test_triton_counts_the_requests_of_a_failed_batch(model: Model):
    """The alert on faults of the service goes by this."""

    def failed() -> int:
        (found,) = re.findall(
            r'^nv_inference_request_failure{model="align_mask",reason="BACKEND".*} (\d+)$',
            model.metrics(),
            re.MULTILINE,
        )
        return int(found)

    before = failed()
    model.break_down("cuda")
    model.ask()
    assert failed() == before + 1
