"""The liveness probe: exits with 1, and says why, when the server must be restarted.

Triton's own endpoints answer 200 while a model hangs or fails every request, and before 26.04 also while the
process of a Python model is dead. This probe reads the metrics instead:

- `align_mask_heartbeat_seconds` of each instance: no progress for `STALE_SECONDS`;
- `align_mask_failed_batches` of each instance: `FAILURES` batches in a row;
- Triton's counters of `hog`, `pose_mlp` and any other model, whatever its backend: `FAILURES` requests failed
  by the backend and none answered since; or requests that wait while none has ended for `WAIT_SECONDS`. The
  counters of the last look are kept in a file.

It sends no face: a full queue would refuse it, and a busy pod is not a dead one. It does not ask a model
whether it is ready: where Triton passes the question on to the model, a busy one may answer late. It needs
nothing but Python's standard library.
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
"""How long an instance of align_mask may take for one step of its work.

The slowest step that its limits allow, eight frames of 3840x2160 through the warp, takes 0.42 s of a core;
this is 19 times as long. Measured on two cores with nine runnable processes and requests above today's
max_request_pixels (128 frames of 1920x1080, 32 of 3840x2160, 32 of 1920x1080 in FP32): a step took up to
1.03 s, and the heartbeat, which is updated every second, was at most 1.8 s old.
"""

WAIT_SECONDS = 4.0
"""How long the other models may end no request while some wait.

Their slowest batch, hog of 128 faces, takes 40 ms of a core. Less than the manifests' period, so that two
looks suffice; requests that wait for 10 s are rejected, and then none waits.
"""

FAILURES = 3
"""So many failures in a row are no coincidence; align_mask's is_ready() counts the same."""

ANSWER_SECONDS = 4.0
"""For both of the probe's requests together; the manifests give the probe 5 s."""

NOT_COUNTED = {"align_mask", "ensemble"}
"""Models whose counters say nothing here. align_mask has metrics of its own, and its counters may stand still
for longer, because they count whole requests. The ensemble's failures include invalid faces, and versions of
Triton differ in the reason they give for these."""

HEARTBEAT = re.compile(r'^align_mask_heartbeat_seconds{.*?model_instance="(.*?)".*?} (\S+)$', re.MULTILINE)
FAILED_BATCHES = re.compile(r'^align_mask_failed_batches{.*?model_instance="(.*?)".*?} (\S+)$', re.MULTILINE)
REQUESTS = re.compile(
    r"^nv_inference_(?:request_)?(success|failure|pending)(?:_request_count)?{(.*?)} (\S+)$", re.MULTILINE
)
LABEL = re.compile(r'(\w+)="(.*?)"')


class Counters(NamedTuple):
    """The counters of a model at a look, and what the looks before it make of them.

    Attributes
    ----------
    answered, failed : float
        Requests that the model answered and those that its backend failed. Rejected and cancelled requests
        never reached it.
    waiting : float
        Requests that wait for the model.
    failed_before : float
        `failed` when `answered` last changed.
    still_since : float
        Time of the first look since which requests have waited and none has ended, s of the monotonic clock.
    """

    answered: float
    failed: float
    waiting: float
    failed_before: float
    still_since: float


Memory = dict[str, Counters]
"""Model -> its counters at the last look."""


def why_dead(http_port: int, metrics_port: int, memory: Memory) -> str | None:
    """Return why the server on this machine must be restarted, or None.

    Parameters
    ----------
    http_port, metrics_port : int
        Its ports on 127.0.0.1.
    memory : dict of str to Counters
        What the last look remembered; it is updated.
    """
    deadline = time.monotonic() + ANSWER_SECONDS
    try:
        _get(http_port, "/v2/health/live", deadline)
        metrics = get_metrics(metrics_port, deadline)
    except (OSError, ValueError, http.client.HTTPException) as error:
        return f"ports {http_port} and {metrics_port}: {type(error).__name__}: {error}"
    if not HEARTBEAT.search(metrics):
        return "no instance of align_mask has a heartbeat: is the metrics endpoint on?"
    return "; ".join(troubles(metrics, memory)) or None


def get_metrics(port: int, deadline: float) -> str:
    """Return the metrics of a server on this machine.

    Parameters
    ----------
    port : int
        Its metrics port on 127.0.0.1.
    deadline : float
        When to give up, s of the monotonic clock.

    Raises
    ------
    OSError, ValueError, http.client.HTTPException
        When there is no good answer until then.
    """
    return _get(port, "/metrics", deadline)


def troubles(metrics: str, memory: Memory) -> list[str]:
    """Return what is wrong with the models of a server.

    Parameters
    ----------
    metrics : str
        Its metrics, as Prometheus reads them.
    memory : dict of str to Counters
        What the last look remembered; it is updated.
    """
    found = []
    for instance, moment in HEARTBEAT.findall(metrics):
        age = time.time() - float(moment)
        # Far in the future, after a clock was set back, or not a number, it tells nothing either.
        if not abs(age) <= STALE_SECONDS:
            found.append(f"{instance} has made no progress for {age:.0f} s")
    for instance, count in FAILED_BATCHES.findall(metrics):
        if float(count) >= FAILURES:
            found.append(f"{instance} has failed {float(count):.0f} batches in a row")
    return found + _troubles_of_other_models(metrics, memory)


def _troubles_of_other_models(metrics: str, memory: Memory) -> list[str]:
    found = []
    now = time.monotonic()
    for model, (answered, failed, waiting) in _requests(metrics).items():
        before = memory.get(model)
        # Counters start again with the server, the clock with the machine.
        if before is None or answered + failed < before.answered + before.failed or now < before.still_since:
            before = Counters(answered, failed, 0, failed, now)
        same = (answered, failed) == (before.answered, before.failed)
        memory[model] = after = Counters(
            answered,
            failed,
            waiting,
            before.failed_before if answered == before.answered else failed,
            before.still_since if same and waiting and before.waiting else now,
        )
        in_a_row, still = failed - after.failed_before, now - after.still_since
        if in_a_row >= FAILURES:
            found.append(f"{model} has failed {in_a_row:.0f} requests and answered none since")
        if still > WAIT_SECONDS:
            found.append(f"{model} has ended no request for {still:.0f} s while {waiting:.0f} wait")
    return found


def _requests(metrics: str) -> dict[str, tuple[float, float, float]]:
    """Return how many requests each model has answered, how many its backend failed, how many wait."""
    sums: Counter[tuple[str, str]] = Counter()
    for metric, text, value in REQUESTS.findall(metrics):
        labels = dict(LABEL.findall(text))
        if labels["model"] not in NOT_COUNTED and labels.get("reason", "BACKEND") == "BACKEND":
            sums[labels["model"], metric] += float(value)
    return {
        model: (sums[model, "success"], sums[model, "failure"], sums[model, "pending"]) for model, _ in sums
    }


def _get(port: int, path: str, deadline: float) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=max(0.1, deadline - time.monotonic()))
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        text = answer.read().decode()
    finally:
        connection.close()
    if answer.status != 200:
        raise ValueError(f"{path} answers {answer.status}")
    return text


def load(path: Path) -> Memory:
    """Read what the last look remembered; nothing, when there is no such file of this user."""
    try:
        with _open(path, os.O_RDONLY, "r") as file:
            return {model: Counters(*map(float, values)) for model, values in json.load(file).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def save(path: Path, memory: Memory) -> None:
    """Write what this look remembers.

    Raises
    ------
    OSError
        When the file cannot be written or is another user's.
    """
    with _open(path, os.O_WRONLY | os.O_CREAT, "w") as file:
        file.truncate()
        json.dump(memory, file)


def _open(path: Path, flags: int, mode: str):  # noqa: ANN202
    """Open a file in a folder that others may write to: no link, no FIFO, nobody else's."""
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
        os.close(descriptor)
        raise PermissionError(f"{path} is not a file of this user")
    return os.fdopen(descriptor, mode)


def main() -> int:
    """Look at the ports of the environment's HTTP_PORT and METRICS_PORT, by default Triton's."""
    http_port, metrics_port = (
        int(os.environ.get(name, default))
        for name, default in (("HTTP_PORT", "8000"), ("METRICS_PORT", "8002"))
    )
    path = Path(tempfile.gettempdir()) / f"triton-face-probe-{os.geteuid()}-{metrics_port}.json"
    memory = load(path)
    reason = why_dead(http_port, metrics_port, memory)
    try:
        save(path, memory)
    except OSError as error:
        print(f"failures of other models than align_mask are not seen: {error}", file=sys.stderr)
    if reason:
        print(reason)
    return 1 if reason else 0


if __name__ == "__main__":
    sys.exit(main())
