"""Tests of any running server: `pytest tests/acceptance --server HOST:PORT`."""
