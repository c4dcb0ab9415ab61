"""`RegionPool` with many threads."""

import itertools
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from triton_face_client.transports.region_pool import SIZE_MULTIPLE, RegionPool

THREADS = 8
USES_PER_THREAD = 500


class CountedRegion:
    """A region without memory, which counts its users and the calls of `close`."""

    numbers = itertools.count()

    def __init__(self, size: int) -> None:
        self.name = f"region {next(self.numbers)}"
        self._size = size
        self.registration_sent = True
        self.users = 0
        self.close_calls = 0

    @property
    def size(self) -> int:
        """Size in bytes."""
        time.sleep(0)  # Let another thread run, so that the pool is tested in the middle of a search.
        return self._size

    def close(self) -> None:
        """Count the call."""
        self.close_calls += 1


@pytest.fixture
def frequent_switches() -> Iterator[None]:
    """Make Python switch threads as often as possible."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def test_each_region_has_one_user_and_is_closed_once(frequent_switches: None):
    created: list[CountedRegion] = []

    def create_region(size: int) -> CountedRegion:
        region = CountedRegion(size)
        created.append(region)
        return region

    pool = RegionPool(create_region, "unregister_system_shared_memory")
    failures: list[BaseException] = []

    def use_regions(first: int) -> None:
        try:
            for number in range(USES_PER_THREAD):
                size = (1 + (first + number) % 7) * SIZE_MULTIPLE
                with pool.acquire_region(size) as region:
                    region.users += 1
                    assert region.users == 1
                    assert region.size >= size
                    assert region.close_calls == 0
                    region.users -= 1
        except (AssertionError, ValueError, IndexError) as error:
            failures.append(error)

    threads = [threading.Thread(target=use_regions, args=(first,)) for first in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    pool.close()
    assert all(region.close_calls == 1 for region in created)
    assert {action.region["name"] for action in pool.pop_unregistrations()} == {
        region.name for region in created
    }
