"""align_mask's own metrics, scraped by a real Prometheus."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from align_mask.face_checks import REASONS, reason_of
from deploy.local import LocalServer
from tests.support.face_data import photo_faces
from tests.support.invalid_faces import INVALID_FACES
from tests.support.prometheus import Prometheus
from tests.support.raw_requests import infer
from tests.support.waiting import wait_until
from triton_face_client import FaceFeatureClient

WAIT_SECONDS = 15.0


@pytest.fixture
def server_and_prometheus(repository: Path) -> Iterator[tuple[LocalServer, Prometheus]]:
    """Yield a server whose counters are 0, and a Prometheus that scrapes it."""
    with LocalServer(repository) as server, Prometheus(server.metrics_url) as prometheus:
        yield server, prometheus


def test_prometheus_counts_faces_requests_and_stages(server_and_prometheus: tuple[LocalServer, Prometheus]):
    server, prometheus = server_and_prometheus
    wait_until(lambda: len(prometheus.query("align_mask_refused_faces_total")) == len(REASONS), WAIT_SECONDS)
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

    wait_until(lambda: prometheus.query("align_mask_refused_requests_total") == {"": 2}, WAIT_SECONDS)
    assert prometheus.query("align_mask_refused_requests_total") == {"": 2}
    assert prometheus.query("align_mask_faces_total") == {"": 21 + 21}
    invalid = {
        name: count for name, count in prometheus.query("align_mask_refused_faces_total").items() if count
    }
    assert invalid == {"non-finite landmark": 2, "all landmarks are equal": 1}
    assert prometheus.query("align_mask_batch_faces_sum") == {"": 21 + 21 + 10}
    buckets = prometheus.query("align_mask_batch_faces_bucket")
    assert buckets["1"] == 1
    assert buckets["4"] == 2
    assert buckets["128"] == buckets["+Inf"] == prometheus.query("align_mask_batch_faces_count")[""]
    seconds = prometheus.query("align_mask_stage_seconds_total")
    assert set(seconds) == {"io", "align", "mask", "warp"}
    assert all(0 < spent < 10 for spent in seconds.values())


def test_every_reason_has_a_metric(client: FaceFeatureClient):
    """A reason without a metric would end the thread that flushes the metrics."""
    reasons = set()
    for invalidate, _ in INVALID_FACES.values():
        frames, landmarks = photo_faces(4, 641)
        invalidate(frames, landmarks)
        reasons.add(rejection_reason(client, frames, landmarks))
    for size in ((15, 112), (3000, 2800)):
        frames = np.zeros((1, 3, *size), np.float32)
        reasons.add(rejection_reason(client, frames, photo_faces(1, 642)[1]))
    assert reasons == set(REASONS)


def rejection_reason(client: FaceFeatureClient, frames: np.ndarray, landmarks: np.ndarray) -> str:
    """Return the reason of the first invalid face of a request that must be rejected."""
    with pytest.raises(InferenceServerException) as caught:
        infer(client, "align_mask", {"FRAMES": frames, "LANDMARKS": landmarks}, ["MASK"])
    first = caught.value.message().partition("; face ")[0]
    return reason_of(first.partition(": ")[2])


def test_server_without_metrics_endpoint_answers(repository: Path):
    frames, landmarks = photo_faces(3, 644)
    with (
        LocalServer(repository, options=("--allow-metrics=0",), models=("align_mask",)) as server,
        FaceFeatureClient(server.grpc_url) as client,
    ):
        assert client.align(frames, landmarks)["MASKED_FACES"].shape == (3, 3, 112, 112)


def test_instances_add_to_the_same_counters(server_and_prometheus: tuple[LocalServer, Prometheus]):
    server, prometheus = server_and_prometheus
    frames, landmarks = photo_faces(40, 643)
    many = np.arange(2000) % 40
    with FaceFeatureClient(server.grpc_url, batch_size=3, in_flight=12) as client:
        client.features(frames[many], landmarks[many])
    wait_until(lambda: prometheus.query("align_mask_faces_total") == {"": 2000}, WAIT_SECONDS)
    assert prometheus.query("align_mask_faces_total") == {"": 2000}
    assert prometheus.query("align_mask_batch_faces_sum") == {"": 2000}
