"""Liveness probe: exits with 1 and prints the reason when the server must be restarted.

Triton's own endpoints answer 200 while a model hangs or fails every request, and before 26.04 also while the
stub process of a Python model is dead. This probe reads the metrics instead. It fails

- when `align_mask_heartbeat_seconds` of an instance shows no progress for `STALE_SECONDS`;
- when `align_mask_failed_batches` of an instance reaches `FAILURES`;
- when any other model has failed `FAILURES` requests with an internal error since its last successful one, or
  has completed no request for `STALL_SECONDS` while requests wait. A file keeps Triton's counters from one
  probe to the next.

The probe sends no inference request: a full queue would reject it, and a busy server need not be restarted.
It does not use a model's readiness endpoint either: newer Triton versions pass the call to the model, which
may be busy.

The probe does not detect that an `align_mask` process hangs outside `execute`, because its heartbeat thread
continues.

Only Python's standard library is needed.
"""

import http.client
import json
import os
import re
import stat
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

STALE_SECONDS = 8.0
"""Maximum age of a heartbeat. An instance updates it after each stage of a batch; while idle, every second.

The slowest stage is the warp. Eight frames of 3840x2160, twice the limit of a request, take 0.42 s of a core.
On two cores with nine runnable processes and requests above today's max_request_pixels (128 frames of
1920x1080, 32 of 3840x2160, 32 of 1920x1080 in FP32) a stage took up to 1.03 s and the heartbeat was at most
1.8 s old.
"""

STALL_SECONDS = 4.0
"""Maximum time in which a model other than align_mask completes no request while requests wait.

The slowest batch, 128 faces of hog, takes 40 ms of a core. The limit is shorter than the period of the probe,
so the second probe detects the stall. It is shorter than the queue's timeout of 10 s: after a timeout no
request waits.
"""

FAILURES = 3
"""Consecutive failures after which a probe fails; is_ready() of align_mask uses the same number."""

ANSWER_SECONDS = 4.0
"""Time limit of both HTTP requests together; the manifests end the probe after 5 s."""

IGNORED_COUNTERS = {"align_mask", "ensemble", "action_units"}
"""Models whose Triton counters are not used. A request to align_mask may take longer than `STALL_SECONDS`, so
the probe uses its heartbeat. The ensembles' failures include invalid faces, with reasons that differ between
Triton versions."""

HEARTBEAT = re.compile(r'^align_mask_heartbeat_seconds{.*?model_instance="(.*?)".*?} (\S+)$', re.MULTILINE)
FAILED_BATCHES = re.compile(r'^align_mask_failed_batches{.*?model_instance="(.*?)".*?} (\S+)$', re.MULTILINE)
REQUESTS = re.compile(
    r"^nv_inference_(?:request_)?(success|failure|pending)(?:_request_count)?{(.*?)} (\S+)$", re.MULTILINE
)
LABEL = re.compile(r'(\w+)="(.*?)"')


class Counters(NamedTuple):
    """Triton's request counts of a model at a probe, and values derived from earlier probes.

    Attributes
    ----------
    succeeded, failed : float
        Requests that succeeded, and requests that the backend failed. Rejected and cancelled
        requests do not reach the backend and are in neither.
    waiting : float
        Requests in the model's queue.
    failed_at_last_success : float
        Value of `failed` when `succeeded` last changed.
    stalled_since : float
        Time of the first probe of the current stall, or of this probe if there is none, s of the monotonic
        clock.
    """

    succeeded: float
    failed: float
    waiting: float
    failed_at_last_success: float
    stalled_since: float


CounterHistory = dict[str, Counters]
"""Counters of each model at the last probe."""


def failure_reason(http_port: int, metrics_port: int, history: CounterHistory) -> str | None:
    """Return the reason for a restart of the server on this machine, or None.

    Parameters
    ----------
    http_port, metrics_port : int
        Ports of the server on 127.0.0.1.
    history : dict of str to Counters
        Counters at the last probe; this function updates them.
    """
    deadline = time.monotonic() + ANSWER_SECONDS
    try:
        _get(http_port, "/v2/health/live", deadline)
        metrics = get_metrics(metrics_port, deadline)
    except (OSError, ValueError, http.client.HTTPException) as error:
        return f"ports {http_port} and {metrics_port}: {type(error).__name__}: {error}"
    if not HEARTBEAT.search(metrics):
        return "no instance of align_mask has a heartbeat: is the metrics endpoint enabled?"
    return "; ".join(find_problems(metrics, history)) or None


def get_metrics(port: int, deadline: float) -> str:
    """Return the metrics of a server on this machine.

    Parameters
    ----------
    port : int
        Metrics port on 127.0.0.1.
    deadline : float
        Time limit, s of the monotonic clock.

    Raises
    ------
    OSError, ValueError, http.client.HTTPException
        The server does not answer with status 200 before the deadline.
    """
    return _get(port, "/metrics", deadline)


def find_problems(metrics: str, history: CounterHistory) -> list[str]:
    """Return the reasons for a restart that a server's metrics show.

    Parameters
    ----------
    metrics : str
        Metrics in Prometheus' text format.
    history : dict of str to Counters
        Counters at the last probe; this function updates them.
    """
    found = []
    for instance, moment in HEARTBEAT.findall(metrics):
        age = time.time() - float(moment)
        # A heartbeat in the future (the clock was set back) or NaN is no proof of progress.
        if not abs(age) <= STALE_SECONDS:
            found.append(f"{instance} has made no progress for {age:.0f} s")
    for instance, count in FAILED_BATCHES.findall(metrics):
        if float(count) >= FAILURES:
            found.append(f"{instance} has failed {float(count):.0f} batches in a row")
    return found + _problems_of_other_models(metrics, history)


def _problems_of_other_models(metrics: str, history: CounterHistory) -> list[str]:
    found = []
    now = time.monotonic()
    for model, (succeeded, failed, waiting) in _request_counts(metrics).items():
        before = history.get(model)
        # A restart of the server resets the counters, a restart of the machine resets the clock.
        if (
            before is None
            or succeeded + failed < before.succeeded + before.failed
            or now < before.stalled_since
        ):
            before = Counters(succeeded, failed, 0, failed, now)
        no_request_ended = (succeeded, failed) == (before.succeeded, before.failed)
        history[model] = after = Counters(
            succeeded,
            failed,
            waiting,
            before.failed_at_last_success if succeeded == before.succeeded else failed,
            before.stalled_since if no_request_ended and waiting and before.waiting else now,
        )
        consecutive_failures = failed - after.failed_at_last_success
        stalled_seconds = now - after.stalled_since
        if consecutive_failures >= FAILURES:
            found.append(f"{model} has failed {consecutive_failures:.0f} requests and answered none since")
        if stalled_seconds > STALL_SECONDS:
            found.append(
                f"{model} has completed no request for {stalled_seconds:.0f} s while {waiting:.0f} wait"
            )
    return found


def _request_counts(metrics: str) -> dict[str, tuple[float, float, float]]:
    """Return each model's numbers of succeeded, failed and waiting requests."""
    sums: Counter[tuple[str, str]] = Counter()
    for metric, label_text, value in REQUESTS.findall(metrics):
        labels = dict(LABEL.findall(label_text))
        if labels["model"] not in IGNORED_COUNTERS and labels.get("reason", "BACKEND") == "BACKEND":
            sums[labels["model"], metric] += float(value)
    return {
        model: (sums[model, "success"], sums[model, "failure"], sums[model, "pending"]) for model, _ in sums
    }


def _get(port: int, path: str, deadline: float) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=max(0.1, deadline - time.monotonic()))
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read().decode()
    finally:
        connection.close()
    if response.status != 200:
        raise ValueError(f"{path} answers with HTTP status {response.status}")
    return body


def load_history(path: Path) -> CounterHistory:
    """Return the counters of the last probe; empty if the file is missing, damaged or another user's."""
    try:
        with _open(path, os.O_RDONLY, "r") as file:
            return {model: Counters(*map(float, values)) for model, values in json.load(file).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def save_history(path: Path, history: CounterHistory) -> None:
    """Write the counters for the next probe.

    Raises
    ------
    OSError
        The file cannot be written or belongs to another user.
    """
    with _open(path, os.O_WRONLY | os.O_CREAT, "w") as file:
        file.truncate()
        json.dump(history, file)


def _open(path: Path, flags: int, mode: str):  # noqa: ANN202
    """Open a regular file of this user; others may have put a link, a FIFO or a file at this path."""
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
        os.close(descriptor)
        raise PermissionError(f"{path} is not a file of this user")
    return os.fdopen(descriptor, mode)


def main() -> int:
    """Probe the server on HTTP_PORT and METRICS_PORT of the environment, by default 8000 and 8002."""
    http_port, metrics_port = (
        int(os.environ.get(name, default))
        for name, default in (("HTTP_PORT", "8000"), ("METRICS_PORT", "8002"))
    )
    path = Path(tempfile.gettempdir()) / f"triton-face-probe-{os.geteuid()}-{metrics_port}.json"
    history = load_history(path)
    reason = failure_reason(http_port, metrics_port, history)
    try:
        save_history(path, history)
    except OSError as error:
        print(f"only align_mask is checked, without the counters of other models: {error}", file=sys.stderr)
    if reason:
        print(reason)
    return 1 if reason else 0


if __name__ == "__main__":
    sys.exit(main())
