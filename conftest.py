"""Loads the fixtures shared by all tests, including the benchmarks' tests."""

pytest_plugins = ["tests.support.fixtures", "tests.support.au_checkpoints"]
