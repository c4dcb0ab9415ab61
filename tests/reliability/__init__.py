"""Tests of the promises of docs/reliability.md; `make chaos` and `make soak` run the long versions."""
