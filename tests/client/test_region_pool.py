"""`RegionPool` under many threads: no region is lent to two at once, none is lost."""

import itertools
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from triton_face_client.transports.region_pool import GRANULE, RegionPool

THREADS = 8
LOANS = 500


class CountedRegion:
    """A region without memory, which notes how many have borrowed it and whether it was closed."""

    numbers = itertools.count()

    def __init__(self, size: int) -> None:
        self.name = f"region {next(self.numbers)}"
        self._size = size
        self.was_announced = True
        self.borrowers = 0
        self.closings = 0

    @property
    def size(self) -> int:
        """Return the size in bytes; another thread may run before it is returned."""
        time.sleep(0)
        return self._size

    def close(self) -> None:
        """Count the call."""
        self.closings += 1


@pytest.fixture
def frequent_switches() -> Iterator[None]:
    """Have Python change threads as often as it can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def test_no_region_is_lent_twice_or_lost(frequent_switches: None):
    made: list[CountedRegion] = []

    def make(size: int) -> CountedRegion:
        region = CountedRegion(size)
        made.append(region)
        return region

    pool = RegionPool(make, "unregister_system_shared_memory")
    failures: list[BaseException] = []

    def borrow(first: int) -> None:
        try:
            for number in range(LOANS):
                wanted = (1 + (first + number) % 7) * GRANULE
                with pool.borrowed(wanted) as region:
                    region.borrowers += 1
                    assert region.borrowers == 1
                    assert region.size >= wanted
                    assert not region.closings
                    region.borrowers -= 1
        except (AssertionError, ValueError, IndexError) as error:
            failures.append(error)

    threads = [threading.Thread(target=borrow, args=(first,)) for first in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    pool.close()
    assert all(region.closings == 1 for region in made)
    assert {manage.arguments["name"] for manage in pool.lost()} == {region.name for region in made}
