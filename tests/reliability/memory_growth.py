"""Growth of memory, estimated from samples that fluctuate."""

from collections.abc import Sequence

import numpy as np

WARM_UP_FRACTION = 0.25
"""Fraction of the samples, from the first, that is ignored: a new server still fills its memory pools."""

LEAK_MB = 100.0
"""Growth that counts as a leak. Allocators alone vary by tens of megabytes."""


def growth(samples: Sequence[float]) -> float:
    """Return the median of the last third of the samples minus that of the first third, after the warm-up.

    Memory fluctuates, because allocators keep the memory of large requests for a while; a median ignores
    single samples. Fewer than six samples give 0.
    """
    if len(samples) < 6:
        return 0.0
    warm = list(samples[int(WARM_UP_FRACTION * len(samples)) :])
    third = max(1, len(warm) // 3)
    return float(np.median(warm[-third:]) - np.median(warm[:third]))
