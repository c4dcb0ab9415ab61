#!/bin/sh
# Like NVIDIA's entry point: prepare the environment, then run the container's command.
export NVIDIA_ENTRYPOINT_RAN=1
exec "$@"
