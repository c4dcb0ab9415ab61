"""Pieces of memory that the server knows by name: one for each request in flight, used again and again."""

import bisect
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar

from tritonclient.utils import InferenceServerException

from triton_face_client.transports.messages import INVALID_ARGUMENT, Manage

GRANULE = 2**20
"""Bytes. Regions are whole multiples, so that requests of nearly one size share them."""


class NamedRegion(Protocol):
    """What a pool is of."""

    name: str
    size: int
    was_announced: bool

    def close(self) -> None:
        """Let go of it."""


R = TypeVar("R", bound=NamedRegion)


class RegionPool(Generic[R]):
    """A pool of regions, for any number of threads.

    Parameters
    ----------
    make : callable
        Makes a region of a size in bytes.
    forget : str
        tritonclient's method that has the server forget a region.
    """

    def __init__(self, make: Callable[[int], R], forget: str) -> None:
        self._make = make
        self._forget = forget
        self._free: list[R] = []  # smallest first
        self._lost: list[Manage] = []
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def borrowed(self, size: int) -> Iterator[R]:
        """Lend a region of at least `size` bytes.

        After a failure it is not used again: the server may still be at work in it, or know it no longer. A
        refusal is an answer.
        """
        region = self._take(size) or self._make(-(-size // GRANULE) * GRANULE)
        answered = False
        try:
            yield region
            answered = True
        except InferenceServerException as error:
            answered = error.status() == INVALID_ARGUMENT
            raise
        finally:
            if answered:
                with self._lock:
                    bisect.insort(self._free, region, key=_size)
            else:
                self._let_go(region)

    def close(self) -> None:
        """Let go of all that nobody has borrowed."""
        with self._lock:
            regions, self._free = self._free, []
        for region in regions:
            self._let_go(region)

    def lost(self) -> list[Manage]:
        """Return how the server forgets the regions that are not used again, once."""
        with self._lock:
            lost, self._lost = self._lost, []
        return lost

    def still_lost(self, forgetting: Manage) -> None:
        """Note that the server has kept a region for now."""
        with self._lock:
            self._lost.append(forgetting)

    @property
    def has_lost(self) -> bool:
        """Tell whether the server has kept a region."""
        return bool(self._lost)

    def _take(self, size: int) -> R | None:
        with self._lock:
            smallest = bisect.bisect_left(self._free, size, key=_size)
            if smallest < len(self._free):
                return self._free.pop(smallest)
            # A larger one takes the place of the smallest: requests that grow do not pile regions up.
            small = self._free.pop(0) if self._free else None
        if small is not None:
            self._let_go(small)
        return None

    def _let_go(self, region: R) -> None:
        region.close()
        if region.was_announced:
            with self._lock:
                self._lost.append(Manage(self._forget, {"name": region.name}))


def _size(region: NamedRegion) -> int:
    return region.size
