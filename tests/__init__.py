"""Tests against a real server and independent oracles."""
