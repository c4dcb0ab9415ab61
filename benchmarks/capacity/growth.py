"""From one pod to a thousand: how even the load is, what the connections cost, what Prometheus stores."""

from typing import Any

import numpy as np

PODS = (1, 10, 100, 1000)

CLIENTS_PER_POD = 2
"""Each with one channel, and all with the same load."""

SUBSET = 10
"""Pods that a client takes in turn where it does not take all."""

DRAWS = 20
"""Random choices of the clients, of which the mean is taken."""

AGES = (30, 300)
"""Seconds after which a connection ends."""

AGE_JITTER = 0.1
"""gRPC ends a connection up to so much earlier or later."""

NAME_SECONDS = 30
"""For which a cluster's name server may give the pods that there were: the usual cache of CoreDNS."""

SERIES_PER_POD = 165
SCRAPE_SECONDS = 15
BYTES_PER_SAMPLE = 1.5
"""Prometheus: series of a pod's metrics, scrape interval, and what a sample takes on disk."""

SECONDS_PER_DAY = 86_400


def growth_rows(seed: int) -> list[dict[str, Any]]:
    """Return a row for each of `PODS`."""
    generator = np.random.default_rng(seed)
    return [_row(pods, generator) for pods in PODS]


def assumptions() -> dict[str, float]:
    """Return what the rows rest on, for the page to say."""
    return {
        "clients_per_pod": CLIENTS_PER_POD,
        "subset": SUBSET,
        "series_per_pod": SERIES_PER_POD,
        "scrape_seconds": SCRAPE_SECONDS,
        "bytes_per_sample": BYTES_PER_SAMPLE,
    }


def share_rows() -> list[dict[str, float]]:
    """Tell for each age when a new pod has half of its share of the load and all of it, seconds.

    Clients look up the pods when a connection ends, and may hear of those of `NAME_SECONDS` ago; the ends of
    an old fleet's connections are spread evenly.
    """
    return [
        {"age": age, "half": (age + NAME_SECONDS) / 2, "all": age * (1 + AGE_JITTER) + NAME_SECONDS}
        for age in AGES
    ]


def imbalance(pods: int, clients: int, each: int, generator: np.random.Generator) -> float:
    """Return the largest load of a pod over the mean; a client takes `each` random pods in turn."""
    if each >= pods:
        return 1.0
    loads = np.zeros(pods)
    for _ in range(clients):
        loads[generator.choice(pods, each, replace=False, shuffle=False)] += 1
    return float(loads.max() / loads.mean())


def _row(pods: int, generator: np.random.Generator) -> dict[str, Any]:
    clients = CLIENTS_PER_POD * pods
    samples = pods * SERIES_PER_POD / SCRAPE_SECONDS
    return {
        "pods": pods,
        "clients": clients,
        "imbalance": {
            name: float(np.mean([imbalance(pods, clients, each, generator) for _ in range(DRAWS)]))
            for name, each in (("one", 1), ("subset", SUBSET), ("all", pods))
        },
        "connections_per_pod": {"subset": clients * min(SUBSET, pods) // pods, "all": clients},
        "reconnects_per_second": {
            name: {str(age): clients * min(each, pods) / age for age in AGES}
            for name, each in (("subset", SUBSET), ("all", pods))
        },
        "series": pods * SERIES_PER_POD,
        "samples_per_second": samples,
        "bytes_per_day": samples * SECONDS_PER_DAY * BYTES_PER_SAMPLE,
    }
