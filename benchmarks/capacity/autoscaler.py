"""The Horizontal Pod Autoscaler's algorithm, for metrics of type Pods and `selectPolicy: Max`.

After "Algorithm details" and "Configurable scaling behavior" of
https://kubernetes.io/docs/concepts/workloads/autoscaling/horizontal-pod-autoscale/.
"""

import collections
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

SYNC_SECONDS, TOLERANCE = 15, 0.1
"""Kubernetes' defaults: period of the controller; relative deviation from a target that it ignores."""


def desired_replicas(replicas: int, values: np.ndarray, target: float) -> int:
    """Return the number of pods that brings the mean of a metric to its target.

    `values` has one entry for each pod that reports the metric; a starting pod does not report it. Missing
    values count as `target` when the mean is below it and as 0 otherwise. Without any value the number of
    pods does not change.
    """
    if len(values) == 0:
        return replicas
    usage_ratio = np.mean(values) / target
    missing_value = target if usage_ratio < 1 else 0.0
    adjusted_ratio = (np.sum(values) + (replicas - len(values)) * missing_value) / replicas / target
    if abs(1 - adjusted_ratio) <= TOLERANCE or (usage_ratio < 1) != (adjusted_ratio < 1):
        return replicas
    return math.ceil(round(adjusted_ratio * replicas, 9))


class Autoscaler:
    """Autoscaler with the `spec` of a manifest; `targets` maps each metric to its target average."""

    def __init__(self, spec: Mapping[str, Any], targets: Mapping[str, float]) -> None:
        self.replicas = self.minimum = int(spec["minReplicas"])
        self.maximum = int(spec["maxReplicas"])
        self._up, self._down = spec["behavior"]["scaleUp"], spec["behavior"]["scaleDown"]
        self._targets = targets
        self._recommended: collections.deque[tuple[float, int]] = collections.deque(maxlen=100)
        self._changes: collections.deque[tuple[float, int]] = collections.deque(maxlen=100)

    def sync(self, now: float, values: Mapping[str, np.ndarray]) -> int:
        """Return the number of pods at `now`, in seconds; `values` has each metric's values by its name."""
        wanted = max(
            desired_replicas(self.replicas, values[name], target) for name, target in self._targets.items()
        )
        self._recommended.append((now, wanted))
        # Stabilization: scale up to the lowest, down to the highest recommendation in the window.
        lowest, highest = (
            extreme(count for moment, count in self._recommended if moment > now - window or moment == now)
            for extreme, window in (
                (min, self._up["stabilizationWindowSeconds"]),
                (max, self._down["stabilizationWindowSeconds"]),
            )
        )
        wanted = min(max(self.replicas, lowest), highest)
        wanted = min(max(wanted, self.minimum), self.maximum)
        if wanted > self.replicas:
            wanted = max(self.replicas, min(wanted, max(self._limits(now, self._up, 1))))
        elif wanted < self.replicas:
            wanted = min(self.replicas, max(wanted, min(self._limits(now, self._down, -1))))
        self._changes.append((now, wanted - self.replicas))
        self.replicas = wanted
        return wanted

    def _limits(self, now: float, direction: Mapping[str, Any], sign: int) -> list[int]:
        """Return the number of pods that each policy of a direction allows now."""
        limits = []
        for policy in direction["policies"]:
            recent = sum(change for moment, change in self._changes if moment > now - policy["periodSeconds"])
            before = self.replicas - recent
            step = policy["value"] if policy["type"] == "Pods" else before * policy["value"] / 100
            limits.append(before + sign * math.ceil(round(step, 9)))
        return limits
