#!/bin/sh
# Like NVIDIA's: prepares the environment, then runs the container's command.
export NVIDIA_ENTRYPOINT_RAN=1
exec "$@"
