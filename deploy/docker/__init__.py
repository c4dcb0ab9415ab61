"""Container image: build, start script and liveness probe."""
