"""What the service promises when things go wrong, measured; docs/reliability.md states the promises.

`make chaos` and `make soak` run the long versions and write them to `benchmarks/results/`; the tests run
short ones of the same code.
"""
