"""A pool of shared-memory regions: one region per request in flight, reused by later requests."""

import bisect
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar

from tritonclient.utils import InferenceServerException

from triton_face_client.errors import INVALID_ARGUMENT
from triton_face_client.transports.base import ManageRegion

SIZE_MULTIPLE = 2**20
"""Bytes. Region sizes are multiples of this, so that requests of similar size can use the same region."""


class Region(Protocol):
    """Shared memory with the name under which it is registered with the server.

    Attributes
    ----------
    name : str
        Name of the region.
    size : int
        Bytes.
    registration_sent : bool
        Whether the server may have registered the region.
    """

    name: str
    size: int
    registration_sent: bool

    def close(self) -> None:
        """Release the memory."""


RegionT = TypeVar("RegionT", bound=Region)


class RegionPool(Generic[RegionT]):
    """A thread-safe pool of regions.

    Parameters
    ----------
    create_region : callable
        Creates a region; the argument is its size in bytes.
    unregister_method : str
        Name of tritonclient's method that unregisters a region.
    """

    def __init__(self, create_region: Callable[[int], RegionT], unregister_method: str) -> None:
        self._create_region = create_region
        self._unregister_method = unregister_method
        self._free: list[RegionT] = []  # in ascending order of size
        self._unregistrations: list[ManageRegion] = []
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def acquire_region(self, size: int) -> Iterator[RegionT]:
        """Provide a region of at least `size` bytes until the context ends.

        After a response or a rejection for invalid faces, the pool reuses the region. After any other error
        it discards the region: the server may still write to it, or may have restarted and not know it.
        """
        region = self._pop_free(size) or self._create_region(-(-size // SIZE_MULTIPLE) * SIZE_MULTIPLE)
        is_reusable = False
        try:
            yield region
            is_reusable = True
        except InferenceServerException as error:
            is_reusable = error.status() == INVALID_ARGUMENT
            raise
        finally:
            if is_reusable:
                with self._lock:
                    bisect.insort(self._free, region, key=_size)
            else:
                self._discard(region)

    def close(self) -> None:
        """Discard all free regions."""
        with self._lock:
            regions, self._free = self._free, []
        for region in regions:
            self._discard(region)

    def pop_unregistrations(self) -> list[ManageRegion]:
        """Return and clear the actions that unregister discarded regions."""
        with self._lock:
            actions, self._unregistrations = self._unregistrations, []
        return actions

    def requeue_unregistration(self, action: ManageRegion) -> None:
        """Keep an action for another try. Call this if the server still uses the region."""
        with self._lock:
            self._unregistrations.append(action)

    @property
    def has_unregistrations(self) -> bool:
        """Whether `pop_unregistrations` would return an action."""
        return bool(self._unregistrations)

    def _pop_free(self, size: int) -> RegionT | None:
        with self._lock:
            smallest_fit = bisect.bisect_left(self._free, size, key=_size)
            if smallest_fit < len(self._free):
                return self._free.pop(smallest_fit)
            # All free regions are too small, and the caller creates a larger region. Discard the smallest, so
            # that requests of growing size do not accumulate regions.
            too_small = self._free.pop(0) if self._free else None
        if too_small is not None:
            self._discard(too_small)
        return None

    def _discard(self, region: RegionT) -> None:
        region.close()
        if region.registration_sent:
            self.requeue_unregistration(ManageRegion(self._unregister_method, {"name": region.name}))


def _size(region: Region) -> int:
    return region.size
