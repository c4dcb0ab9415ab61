"""The Horizontal Pod Autoscaler, as the Kubernetes documentation describes it.

After "Horizontal Pod Autoscaling", sections "Algorithm details" and "Configurable scaling behavior"
(kubernetes.io/docs/concepts/workloads/autoscaling/horizontal-pod-autoscale), for metrics of the kind Pods
with a target AverageValue. For such metrics the controller does not ask whether a pod is ready: one without a
value counts as missing, and a pod that still starts has none.
"""

import collections
import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

SYNC_SECONDS = 15
"""The controller's period, by default."""

TOLERANCE = 0.1
"""A mean so near to its target, as a share of it, changes nothing; by default."""


@dataclasses.dataclass(frozen=True)
class Policy:
    """At most so many Pods or so many Percent of them in a period, seconds."""

    kind: str
    value: int
    period: int


@dataclasses.dataclass(frozen=True)
class Rules:
    """The behaviour of one direction: stabilisation window in seconds, policies, and which of them counts."""

    window: int
    policies: tuple[Policy, ...]
    select: str = "Max"


@dataclasses.dataclass(frozen=True)
class Autoscaler:
    """A HorizontalPodAutoscaler: bounds, targets by the names of their metrics, and behaviour."""

    least: int
    most: int
    targets: Mapping[str, float]
    up: Rules
    down: Rules


def desired_replicas(replicas: int, values: Sequence[float], target: float) -> int | None:
    """Tell how many pods one metric asks for.

    Parameters
    ----------
    replicas : int
        Pods that there are, with those that start.
    values : sequence of float
        Of each pod that has one; the others' are missing.
    target : float
        What their mean should be.

    Returns
    -------
    int or None
        None where no pod has a value.
    """
    if not values:
        return None
    usage = sum(values) / len(values) / target
    missing = replicas - len(values)
    # Cautious in both directions: idle where more pods are asked for, just loaded where fewer are.
    assumed = target if usage < 1 else 0.0
    cautious = (sum(values) + missing * assumed) / replicas / target
    if abs(1 - cautious) <= TOLERANCE or (usage < 1) != (cautious < 1):
        return replicas
    # What is a whole number but for its last bit is one.
    return math.ceil(round(cautious * replicas, 9))


class Controller:
    """One autoscaler at work.

    Parameters
    ----------
    autoscaler : Autoscaler
    replicas : int
        Pods at the start.

    Attributes
    ----------
    replicas : int
        Pods that it wants now.
    """

    def __init__(self, autoscaler: Autoscaler, replicas: int) -> None:
        self.replicas = replicas
        self._autoscaler = autoscaler
        self._recommended: collections.deque[tuple[float, int]] = collections.deque()
        self._changes: collections.deque[tuple[float, int]] = collections.deque()
        rules = (autoscaler.up, autoscaler.down)
        self._remembered = max(rule.window for rule in rules)
        self._longest_period = max(policy.period for rule in rules for policy in rule.policies)

    def sync(self, now: float, values: Mapping[str, Sequence[float]]) -> int:
        """Look at the metrics at a moment, in seconds, and return how many pods there should be.

        `values` has those of each metric, as in `desired_replicas`.
        """
        recommended = self._recommendation(values)
        if recommended is None:
            return self.replicas
        _forget(self._recommended, now - self._remembered)
        _forget(self._changes, now - self._longest_period)
        self._recommended.append((now, recommended))
        wanted = self._limited(now, self._stabilised(now))
        if wanted != self.replicas:
            self._changes.append((now, wanted - self.replicas))
            self.replicas = wanted
        return wanted

    def _recommendation(self, values: Mapping[str, Sequence[float]]) -> int | None:
        answers = [
            desired_replicas(self.replicas, values[name], target)
            for name, target in self._autoscaler.targets.items()
        ]
        known = [answer for answer in answers if answer is not None]
        # A metric that is not there may be the one that wants the pods.
        if not known or (len(known) < len(answers) and max(known) < self.replicas):
            return None
        return max(known)

    def _stabilised(self, now: float) -> int:
        """Go up to the lowest recommendation of the one window, down to the highest of the other."""
        lowest = min(self._within(now, self._autoscaler.up.window))
        highest = max(self._within(now, self._autoscaler.down.window))
        return min(max(self.replicas, lowest), highest)

    def _within(self, now: float, window: int) -> Iterable[int]:
        latest = self._recommended[-1][1]
        return [latest, *(count for moment, count in self._recommended if moment > now - window)]

    def _limited(self, now: float, wanted: int) -> int:
        """Keep to the policies of the direction, and between the bounds."""
        bounded = min(max(wanted, self._autoscaler.least), self._autoscaler.most)
        if bounded > self.replicas:
            return max(self.replicas, min(bounded, self._limit(now, self._autoscaler.up, 1)))
        if bounded < self.replicas:
            return min(self.replicas, max(bounded, self._limit(now, self._autoscaler.down, -1)))
        return bounded

    def _limit(self, now: float, rules: Rules, sign: int) -> int:
        """Return how far one may go, upwards where the sign is 1 and downwards where it is -1."""
        if rules.select == "Disabled":
            return self.replicas
        limits = []
        for policy in rules.policies:
            changed = sum(change for moment, change in self._changes if moment > now - policy.period)
            at_start = self.replicas - changed
            by = policy.value if policy.kind == "Pods" else at_start * policy.value / 100
            # Rounded away from what there was, so that one pod may always come or go.
            limits.append(at_start + sign * math.ceil(round(by, 9)))
        farthest: Callable[[Iterable[int]], int] = max if (sign > 0) == (rules.select == "Max") else min
        return farthest(limits)


def _forget(entries: collections.deque[tuple[float, int]], before: float) -> None:
    while entries and entries[0][0] <= before:
        entries.popleft()
