"""Tests of the served models and of the local server."""
