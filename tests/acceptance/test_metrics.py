"""The metrics move with the requests. Other callers move them too, so they grow at least by ours."""

import contextlib
import re
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from tests.acceptance.target import Facts, Target, by_frames, infer, wait_until
from tests.support.face_data import photo_faces
from triton_face_client import FaceFeatureClient

SERIES = re.compile(r"^(?P<name>\w+)(?:{(?P<labels>.*)})? (?P<value>\S+)", re.MULTILINE)
LABEL = re.compile(r'(\w+)="([^"]*)"')

COUNTED_SECONDS = 60.0
"""How far the metrics may trail the answers; align_mask's do by 0.2 s, Triton's renews some every 2 s."""

FACES = 21


@pytest.fixture
def page(target: Target) -> Callable[[], str]:
    """Give a function that returns the page of the metrics endpoint."""
    if target.metrics_url is None:
        pytest.skip("no --metrics HOST:PORT")
    return target.scrape


def values(page: str, name: str, **labels: str) -> list[tuple[dict[str, str], float]]:
    """Return labels and value of each series of a name that has the given labels."""
    found = [
        (dict(LABEL.findall(series["labels"] or "")), float(series["value"]))
        for series in SERIES.finditer(page)
        if series["name"] == name
    ]
    return [(own, value) for own, value in found if labels.items() <= own.items()]


def total(page: str, name: str, **labels: str) -> float:
    """Return the sum of the series of a name that have the given labels."""
    return sum(value for _, value in values(page, name, **labels))


@contextlib.contextmanager
def grows(page: Callable[[], str], by: float, name: str, **labels: str) -> Iterator[None]:
    """Assert that a metric is there before the block and grows at least by so much until soon after it."""
    before = page()
    assert values(before, name, **labels), f"the server has no metric {name} {labels or ''}"
    yield
    least = total(before, name, **labels) + by
    assert wait_until(lambda: total(page(), name, **labels) >= least, COUNTED_SECONDS), (
        f"{name} {labels or ''}: {total(page(), name, **labels)}, expected at least {least}"
    )


@pytest.mark.checks("Metrics count faces answered and refused by reason, batches, seconds")
def test_answered_faces_are_counted(client: FaceFeatureClient, page: Callable[[], str]):
    faces = by_frames(*photo_faces(FACES, 640))
    growing = partial(grows, page)
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


@pytest.mark.checks("Metrics count faces answered and refused by reason, batches, seconds")
def test_refused_faces_are_counted_by_reason(client: FaceFeatureClient, page: Callable[[], str]):
    frames, landmarks = photo_faces(10, 641)
    landmarks[[2, 5]] = np.nan
    landmarks[7] = 40
    growing = partial(grows, page)
    with (
        growing(2, "align_mask_refused_faces_total", reason="non-finite landmark"),
        growing(1, "align_mask_refused_faces_total", reason="all landmarks are equal"),
        growing(1, "align_mask_refused_requests_total"),
        pytest.raises(InferenceServerException),
    ):
        infer(client, "ensemble", by_frames(frames, landmarks), ["HOG"])


@pytest.mark.checks("Every instance of align_mask has a heartbeat that moves")
def test_every_heartbeat_moves(page: Callable[[], str], facts: Facts):
    def beats() -> dict[str, float]:
        found = values(page(), "align_mask_heartbeat_seconds")
        return {labels["model_instance"]: moment for labels, moment in found}

    first = beats()
    assert len(first) == facts.instances["align_mask"]
    assert wait_until(
        lambda: all(moment > first[name] for name, moment in beats().items()), COUNTED_SECONDS
    ), f"no instance's heartbeat may stand still: {first}, a minute later {beats()}"
