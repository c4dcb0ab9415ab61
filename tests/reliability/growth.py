"""By how much something has grown, told from samples that go up and down."""

from collections.abc import Sequence

import numpy as np

WARM_UP_SHARE = 0.25
"""Of the samples, at the start: what a server keeps ready, it has by then."""


def growth(samples: Sequence[float]) -> float:
    """Return the median of the last third of the samples less that of the first third, after the warm-up.

    Memory that large requests took and gave back goes up and down by what an allocator keeps; the medians of
    thirds do not follow single samples. Fewer than six samples are none to tell it from: 0.
    """
    if len(samples) < 6:
        return 0.0
    warm = list(samples[int(WARM_UP_SHARE * len(samples)) :])
    third = max(1, len(warm) // 3)
    return float(np.median(warm[-third:]) - np.median(warm[:third]))
