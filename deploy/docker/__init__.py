"""Container image: Dockerfile, start script, liveness probe and cleanup of shared memory."""
