"""Test faces, independent oracles, and servers to test against."""
