"""Fixtures that all tests share, those of the benchmarks included."""

pytest_plugins = ["tests.support.fixtures"]
