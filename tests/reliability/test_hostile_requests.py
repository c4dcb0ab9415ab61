"""Hostile requests are rejected with a reason and harm no other request; `make chaos` sends 20,000."""

import http.client

import grpc
import pytest

from deploy.local import LocalServer
from tests.reliability.fuzzing import fuzz, is_rejection
from tests.reliability.hostile_requests import (
    OUTPUTS,
    Response,
    send_over_grpc,
    send_over_http,
    valid_request,
)


def test_hostile_requests_are_rejected_and_harm_no_other_request(server: LocalServer):
    report = fuzz(server, 600, derandomize=True)
    assert report.hostile >= 900
    assert report.valid >= 90
    assert {"INVALID_ARGUMENT", "400"} <= set(report.statuses)


@pytest.mark.parametrize("frames_type", ["FP32", "UINT8"])
@pytest.mark.parametrize("model", OUTPUTS)
def test_request_without_defects_is_accepted(server: LocalServer, model: str, frames_type: str):
    connection = http.client.HTTPConnection(*server.http_url.split(":"))
    with grpc.insecure_channel(server.grpc_url) as channel:
        assert send_over_grpc(channel, valid_request(model, frames_type)) == Response("OK", "")
        assert send_over_http(connection, valid_request(model, frames_type)) == Response("200", "")
    connection.close()


@pytest.mark.parametrize(
    "response",
    [
        Response("OK", ""),
        Response("200", ""),
        Response("INVALID_ARGUMENT", ""),
        Response("INTERNAL", "Stub process 'align_mask_0_0' is not healthy"),
        Response("500", "unexpected"),
        Response("UNAVAILABLE", "Socket closed"),
        Response("DEADLINE_EXCEEDED", "Deadline Exceeded"),
        Response("no response", ""),
    ],
)
def test_other_responses_do_not_count_as_rejections(response: Response):
    assert not is_rejection(response)
