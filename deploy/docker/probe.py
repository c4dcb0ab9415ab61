"""The liveness probe: exits with 1, and says why, when the server should be started again.

Triton's own endpoints see an `align_mask` stub that was killed from 26.04 on, and one that was stopped or
hangs in no version. `align_mask_heartbeat_seconds` stands still for each of them, so this is looked at beside
`/v2/models/align_mask/ready`. No face is sent: a full queue would refuse it, and a busy pod is not a dead
one. Nothing but Python's standard library is needed.
"""

import http.client
import os
import re
import sys
import time
import urllib.request

STALE_SECONDS = 60.0
"""An instance beats every two seconds; the largest batch of 4K frames takes it a few on a busy machine."""

ANSWER_SECONDS = 4.0
"""For each of the two requests; the manifests give the probe 10."""

HEARTBEAT = re.compile(r'^align_mask_heartbeat_seconds{.*?model_instance="(.*?)".*?} (\S+)$', re.MULTILINE)


def why_dead(http_port: int, metrics_port: int) -> str | None:
    """Return why the server on this machine must be started again, or None.

    Parameters
    ----------
    http_port, metrics_port : int
        Its ports on 127.0.0.1.
    """
    try:
        _get(http_port, "/v2/models/align_mask/ready")
        metrics = _get(metrics_port, "/metrics")
    except (OSError, ValueError, http.client.HTTPException) as error:
        return f"ports {http_port} and {metrics_port}: {type(error).__name__}: {error}"
    ages = {name: time.time() - float(moment) for name, moment in HEARTBEAT.findall(metrics)}
    if not ages:
        return "no instance of align_mask has a heartbeat: is the metrics endpoint on?"
    # Far in the future, after a clock was set back, or not a number, it tells nothing either.
    stale = [f"{name}: {age:.0f} s" for name, age in ages.items() if not abs(age) <= STALE_SECONDS]
    return f"no heartbeat of {', '.join(stale)}" if stale else None


# The environment may name a proxy, which has no way to this pod's own ports.
_DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _get(port: int, path: str) -> str:
    with _DIRECTLY.open(f"http://127.0.0.1:{port}{path}", timeout=ANSWER_SECONDS) as answer:
        return answer.read().decode()


def main() -> int:
    """Look at the ports of the environment's HTTP_PORT and METRICS_PORT, by default Triton's."""
    reason = why_dead(int(os.environ.get("HTTP_PORT", "8000")), int(os.environ.get("METRICS_PORT", "8002")))
    if reason:
        print(reason)
    return 1 if reason else 0


if __name__ == "__main__":
    sys.exit(main())
