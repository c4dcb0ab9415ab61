"""The metrics count requests and faces. Other callers' requests count too, so each test checks a minimum."""

import contextlib
import re
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from tests.acceptance.target import ServerInfo, Target, frame_inputs, infer
from tests.support.face_data import photo_faces
from tests.support.waiting import wait_until
from triton_face_client import FaceFeatureClient

SERIES = re.compile(r"^(?P<name>\w+)(?:{(?P<labels>.*)})? (?P<value>\S+)", re.MULTILINE)
LABEL = re.compile(r'(\w+)="([^"]*)"')

UPDATE_SECONDS = 60.0
"""Maximum delay of the metrics. align_mask flushes its metrics every 0.2 s, Triton updates some every 2 s."""

FACES = 21


@pytest.fixture
def scrape(target: Target) -> Callable[[], str]:
    """Return a function that scrapes the metrics endpoint."""
    if target.metrics_url is None:
        pytest.skip("no --metrics HOST:PORT")
    return target.scrape


def values(metrics: str, name: str, **labels: str) -> list[tuple[dict[str, str], float]]:
    """Return the labels and value of each series with a name and the given labels."""
    found = [
        (dict(LABEL.findall(series["labels"] or "")), float(series["value"]))
        for series in SERIES.finditer(metrics)
        if series["name"] == name
    ]
    return [(all_labels, value) for all_labels, value in found if labels.items() <= all_labels.items()]


def total(metrics: str, name: str, **labels: str) -> float:
    """Return the sum of the series with a name and the given labels."""
    return sum(value for _, value in values(metrics, name, **labels))


@contextlib.contextmanager
def assert_grows(scrape: Callable[[], str], by: float, name: str, **labels: str) -> Iterator[None]:
    """Assert that a metric exists before the block and grows by at least `by` soon after it."""
    before = scrape()
    assert values(before, name, **labels), f"the server has no metric {name} {labels or ''}"
    yield
    expected = total(before, name, **labels) + by
    assert wait_until(lambda: total(scrape(), name, **labels) >= expected, UPDATE_SECONDS), (
        f"{name} {labels or ''}: {total(scrape(), name, **labels)}, expected at least {expected}"
    )


@pytest.mark.checks("Metrics count computed and rejected faces, batches, seconds")
def test_computed_faces_are_counted(client: FaceFeatureClient, scrape: Callable[[], str]):
    faces = frame_inputs(*photo_faces(FACES, 640))
    grows = partial(assert_grows, scrape)
    with (
        grows(2 * FACES, "align_mask_faces_total"),
        grows(2 * FACES, "align_mask_batch_faces_sum"),
        grows(1, "align_mask_batch_faces_count"),
        grows(1e-6, "align_mask_stage_seconds_total", stage="mask"),
        grows(1e-6, "align_mask_stage_seconds_total", stage="warp"),
        grows(1, "nv_inference_request_success", model="ensemble"),
        grows(2, "nv_inference_request_success", model="align_mask"),
        grows(FACES, "nv_inference_count", model="hog"),
    ):
        infer(client, "ensemble", faces, ["HOG"])
        infer(client, "align_mask", faces, ["MASKED_FACES"])


@pytest.mark.checks("Metrics count computed and rejected faces, batches, seconds")
def test_rejected_faces_are_counted_by_reason(client: FaceFeatureClient, scrape: Callable[[], str]):
    frames, landmarks = photo_faces(10, 641)
    landmarks[[2, 5]] = np.nan
    landmarks[7] = 40
    grows = partial(assert_grows, scrape)
    with (
        grows(2, "align_mask_refused_faces_total", reason="non-finite landmark"),
        grows(1, "align_mask_refused_faces_total", reason="all landmarks are equal"),
        grows(1, "align_mask_refused_requests_total"),
        pytest.raises(InferenceServerException),
    ):
        infer(client, "ensemble", frame_inputs(frames, landmarks), ["HOG"])


@pytest.mark.checks("Every instance of align_mask updates its heartbeat")
def test_every_instance_updates_its_heartbeat(scrape: Callable[[], str], server_info: ServerInfo):
    def heartbeats() -> dict[str, float]:
        found = values(scrape(), "align_mask_heartbeat_seconds")
        return {labels["model_instance"]: unix_time for labels, unix_time in found}

    first = heartbeats()
    assert len(first) == server_info.instances["align_mask"]
    assert wait_until(
        lambda: all(unix_time > first[name] for name, unix_time in heartbeats().items()), UPDATE_SECONDS
    ), f"an instance did not update its heartbeat: {first}, a minute later {heartbeats()}"
