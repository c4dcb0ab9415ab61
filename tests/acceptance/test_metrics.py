"""The metrics count requests and faces. Other callers' requests count too, so each test checks a minimum."""

import contextlib
import re
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from tests.acceptance.target import ServerInfo, Target, frame_inputs, infer, wait_until
from tests.support.face_data import photo_faces
from triton_face_client import FaceFeatureClient

SERIES = re.compile(r"^(?P<name>\w+)(?:{(?P<labels>.*)})? (?P<value>\S+)", re.MULTILINE)
LABEL = re.compile(r'(\w+)="([^"]*)"')

COUNTED_SECONDS = 60.0
"""Longest delay of the metrics. align_mask updates its own every 0.2 s, Triton updates some every 2 s."""

FACES = 21


@pytest.fixture
def scrape(target: Target) -> Callable[[], str]:
    """Return a function that scrapes the metrics endpoint."""
    if target.metrics_url is None:
        pytest.skip("no --metrics HOST:PORT")
    return target.scrape


def values(page: str, name: str, **labels: str) -> list[tuple[dict[str, str], float]]:
    """Return the labels and value of each series with a name and the given labels."""
    found = [
        (dict(LABEL.findall(series["labels"] or "")), float(series["value"]))
        for series in SERIES.finditer(page)
        if series["name"] == name
    ]
    return [(own, value) for own, value in found if labels.items() <= own.items()]


def total(page: str, name: str, **labels: str) -> float:
    """Return the sum of the series with a name and the given labels."""
    return sum(value for _, value in values(page, name, **labels))


@contextlib.contextmanager
def grows(scrape: Callable[[], str], by: float, name: str, **labels: str) -> Iterator[None]:
    """Assert that a metric exists before the block and grows by at least `by` soon after it."""
    before = scrape()
    assert values(before, name, **labels), f"the server has no metric {name} {labels or ''}"
    yield
    expected = total(before, name, **labels) + by
    assert wait_until(lambda: total(scrape(), name, **labels) >= expected, COUNTED_SECONDS), (
        f"{name} {labels or ''}: {total(scrape(), name, **labels)}, expected at least {expected}"
    )


@pytest.mark.checks("Metrics count computed and rejected faces, batches, seconds")
def test_computed_faces_are_counted(client: FaceFeatureClient, scrape: Callable[[], str]):
    faces = frame_inputs(*photo_faces(FACES, 640))
    growing = partial(grows, scrape)
    with (
        growing(2 * FACES, "align_mask_faces_total"),
        growing(2 * FACES, "align_mask_batch_faces_sum"),
        growing(1, "align_mask_batch_faces_count"),
        growing(1e-6, "align_mask_stage_seconds_total", stage="mask"),
        growing(1e-6, "align_mask_stage_seconds_total", stage="warp"),
        growing(1, "nv_inference_request_success", model="ensemble"),
        growing(2, "nv_inference_request_success", model="align_mask"),
        growing(FACES, "nv_inference_count", model="hog"),
    ):
        infer(client, "ensemble", faces, ["HOG"])
        infer(client, "align_mask", faces, ["MASKED_FACES"])


@pytest.mark.checks("Metrics count computed and rejected faces, batches, seconds")
def test_rejected_faces_are_counted_by_reason(client: FaceFeatureClient, scrape: Callable[[], str]):
    frames, landmarks = photo_faces(10, 641)
    landmarks[[2, 5]] = np.nan
    landmarks[7] = 40
    growing = partial(grows, scrape)
    with (
        growing(2, "align_mask_refused_faces_total", reason="non-finite landmark"),
        growing(1, "align_mask_refused_faces_total", reason="all landmarks are equal"),
        growing(1, "align_mask_refused_requests_total"),
        pytest.raises(InferenceServerException),
    ):
        infer(client, "ensemble", frame_inputs(frames, landmarks), ["HOG"])


@pytest.mark.checks("Every instance of align_mask updates its heartbeat")
def test_every_instance_updates_its_heartbeat(scrape: Callable[[], str], server_info: ServerInfo):
    def beats() -> dict[str, float]:
        found = values(scrape(), "align_mask_heartbeat_seconds")
        return {labels["model_instance"]: moment for labels, moment in found}

    first = beats()
    assert len(first) == server_info.instances["align_mask"]
    assert wait_until(
        lambda: all(moment > first[name] for name, moment in beats().items()), COUNTED_SECONDS
    ), f"an instance did not update its heartbeat: {first}, a minute later {beats()}"
