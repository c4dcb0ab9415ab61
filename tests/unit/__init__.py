"""Tests of functions, without a server."""
