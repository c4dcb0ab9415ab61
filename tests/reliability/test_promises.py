"""Short versions of `make chaos` and `make soak`; docs/reliability.md has the promises."""

import http.client
from pathlib import Path

import grpc
import numpy as np
import pytest

from deploy.local import LocalServer
from tests.reliability.crashes import stop_under_load
from tests.reliability.fuzzing import fuzz, is_refusal
from tests.reliability.growth import growth
from tests.reliability.hostile import OUTPUTS, Answer, over_grpc, over_http, sound
from tests.reliability.overload import RECOVERY_SECONDS, overload
from tests.reliability.soak import FLAT_MB, SoakReport, leaking_repository, soak

LEAK_BYTES = 2**20


def test_hostile_requests_are_refused_and_harm_no_other(server: LocalServer):
    report = fuzz(server, 600, derandomize=True)
    assert report.hostile >= 900
    assert report.sound >= 90
    assert {"INVALID_ARGUMENT", "400"} <= set(report.answers)


@pytest.mark.parametrize("kind", ["FP32", "UINT8"])
@pytest.mark.parametrize("model", OUTPUTS)
def test_what_hostile_requests_start_from_is_served(server: LocalServer, model: str, kind: str):
    """Else they would be refused for nothing that was done to them."""
    connection = http.client.HTTPConnection(*server.http_url.split(":"))
    with grpc.insecure_channel(server.grpc_url) as channel:
        assert over_grpc(channel, sound(model, kind)) == Answer("OK", "")
        assert over_http(connection, sound(model, kind)) == Answer("200", "")
    connection.close()


@pytest.mark.parametrize(
    "answer",
    [
        Answer("OK", ""),
        Answer("200", ""),
        Answer("INVALID_ARGUMENT", ""),
        Answer("INTERNAL", "Stub process 'align_mask_0_0' is not healthy"),
        Answer("500", "unexpected"),
        Answer("UNAVAILABLE", "Socket closed"),
        Answer("DEADLINE_EXCEEDED", "Deadline Exceeded"),
        Answer("no answer", ""),
    ],
)
def test_what_is_no_refusal(answer: Answer):
    assert not is_refusal(answer)


def test_overload_is_refused_and_passes(own_server: LocalServer):
    """Every request gets an answer; how fast is for `make chaos` to say."""
    report = overload(own_server, 5.0)
    assert report.lost == 0
    assert set(report.statuses) == {"UNAVAILABLE"}
    assert report.accepted + report.statuses["UNAVAILABLE"] == report.sent
    assert report.accepted_speed > 0.3 * report.capacity
    assert report.refused_p50 < report.accepted_p50
    assert report.recovery < RECOVERY_SECONDS


@pytest.mark.parametrize(("model", "output"), [("ensemble", "HOG"), ("align_mask", "MASKED_FACES")])
def test_a_stop_answers_what_was_accepted(repository: Path, model: str, output: str):
    report = stop_under_load(repository, model, output)
    assert report.answered == report.accepted
    assert report.under_way > 0, "nothing was under way when it was told to stop"
    assert report.later > 0
    assert report.silent == 0
    assert report.left == []


def soak_when_warm(server: LocalServer) -> SoakReport:
    """Soak for seconds instead of minutes: what a fresh server takes in its first ten is no growth."""
    soak(server, 10.0, 0.5)
    return soak(server, 15.0, 0.5)


def test_memory_stays_flat_under_a_mixed_load(own_server: LocalServer):
    report = soak_when_warm(own_server)
    assert report.failures == []
    assert report.faces > 1000
    assert report.wrong == 0
    assert max(report.growth_mb.values()) < FLAT_MB, report.growth_mb


def test_a_leak_is_caught(repository: Path, tmp_path: Path):
    with LocalServer(leaking_repository(repository, tmp_path, LEAK_BYTES)) as server:
        report = soak_when_warm(server)
    grown = {name.partition(" ")[0]: megabytes for name, megabytes in report.growth_mb.items()}
    assert grown["align_mask"] > FLAT_MB
    assert grown["hog"] < FLAT_MB


def test_growth_is_what_stays():
    wave = 30 * np.sin(np.arange(400))
    assert abs(growth(wave)) < 5
    assert growth(wave + np.linspace(0, 300, 400)) == pytest.approx(150, abs=10)
    start = np.concatenate([np.linspace(0, 500, 100), np.full(300, 500.0)])
    assert growth(start) == 0
    assert growth([1, 1000]) == 0
