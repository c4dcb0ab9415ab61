"""Tests of what docs/reliability.md promises; `make chaos` and `make soak` run the long versions."""
