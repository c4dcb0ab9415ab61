"""align_mask's own metrics, as a real Prometheus sees them."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from align_mask.face_checks import REASONS, reason
from deploy.local import LocalServer
from tests.support.face_data import photo_faces
from tests.support.invalid_faces import INVALID_FACES
from tests.support.prometheus import Prometheus
from tests.support.raw_requests import infer
from triton_face_client import FaceFeatureClient

WAIT_SECONDS = 15.0


@pytest.fixture
def scraped(repository: Path) -> Iterator[tuple[LocalServer, Prometheus]]:
    """Give a server whose counters start at 0, and a Prometheus that scrapes it."""
    with LocalServer(repository) as server, Prometheus(server.metrics_url) as prometheus:
        yield server, prometheus


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.2)


def test_prometheus_sees_what_was_served_and_refused(scraped: tuple[LocalServer, Prometheus]):
    server, prometheus = scraped
    wait_until(lambda: len(prometheus.query("align_mask_refused_faces_total")) == len(REASONS))
    assert prometheus.query("align_mask_refused_faces_total") == dict.fromkeys(REASONS, 0)
    assert prometheus.query("align_mask_faces_total") == {"": 0}

    with FaceFeatureClient(server.grpc_url) as client:
        frames, landmarks = photo_faces(21, 640)
        for count in (1, 4, 16):
            infer(client, "align_mask", {"FRAMES": frames[:count], "LANDMARKS": landmarks[:count]}, ["MASK"])
        client.features(frames, landmarks)
        landmarks[[2, 5]] = np.nan
        landmarks[7] = 40
        with pytest.raises(InferenceServerException):
            infer(client, "ensemble", {"FRAMES": frames[:10], "LANDMARKS": landmarks[:10]}, ["HOG"])
        with pytest.raises(InferenceServerException):
            infer(client, "align_mask", {"LANDMARKS": landmarks}, ["MASK"])

    wait_until(lambda: prometheus.query("align_mask_refused_requests_total") == {"": 2})
    assert prometheus.query("align_mask_refused_requests_total") == {"": 2}
    assert prometheus.query("align_mask_faces_total") == {"": 21 + 21}
    refused = {
        name: count for name, count in prometheus.query("align_mask_refused_faces_total").items() if count
    }
    assert refused == {"non-finite landmark": 2, "all landmarks are equal": 1}
    assert prometheus.query("align_mask_batch_faces_sum") == {"": 21 + 21 + 10}
    at_most = prometheus.query("align_mask_batch_faces_bucket")
    assert at_most["1"] == 1
    assert at_most["4"] == 2
    assert at_most["128"] == at_most["+Inf"] == prometheus.query("align_mask_batch_faces_count")[""]
    seconds = prometheus.query("align_mask_stage_seconds_total")
    assert set(seconds) == {"tensors", "align", "mask", "warp"}
    assert all(0 < spent < 10 for spent in seconds.values())


def test_every_reason_is_known_and_given(client: FaceFeatureClient):
    """A face that is refused for a reason without a metric would end its whole batch."""
    given = set()
    for spoil, _ in INVALID_FACES.values():
        frames, landmarks = photo_faces(4, 641)
        spoil(frames, landmarks)
        given.add(reason_of(client, frames, landmarks))
    for size in ((15, 112), (3000, 2800)):
        given.add(reason_of(client, np.zeros((1, 3, *size), np.float32), photo_faces(1, 642)[1]))
    assert given == set(REASONS)


def reason_of(client: FaceFeatureClient, frames: np.ndarray, landmarks: np.ndarray) -> str:
    with pytest.raises(InferenceServerException) as caught:
        infer(client, "align_mask", {"FRAMES": frames, "LANDMARKS": landmarks}, ["MASK"])
    first = caught.value.message().partition("; face ")[0]
    return reason(first.partition(": ")[2])


def test_a_server_without_metrics_serves(repository: Path):
    frames, landmarks = photo_faces(3, 644)
    with (
        LocalServer(repository, options=("--allow-metrics=0",), models=("align_mask",)) as server,
        FaceFeatureClient(server.grpc_url) as client,
    ):
        assert client.align(frames, landmarks)["MASKED_FACES"].shape == (3, 3, 112, 112)


def test_two_instances_count_together(scraped: tuple[LocalServer, Prometheus]):
    server, prometheus = scraped
    frames, landmarks = photo_faces(40, 643)
    many = np.arange(2000) % 40
    with FaceFeatureClient(server.grpc_url, batch_size=3, in_flight=12) as client:
        client.features(frames[many], landmarks[many])
    wait_until(lambda: prometheus.query("align_mask_faces_total") == {"": 2000})
    assert prometheus.query("align_mask_faces_total") == {"": 2000}
    assert prometheus.query("align_mask_batch_faces_sum") == {"": 2000}
