# perf_analyzer with the project's faces, on the SDK image of NVIDIA's Triton. From the repository's root:
#
#   make perf-image TRITON_IMAGE=<name of NVIDIA's tritonserver image> TRITON_SDK_DIGEST=sha256:<of its -sdk tag>
ARG TRITON_IMAGE
ARG TRITON_VERSION=26.07-py3
ARG TRITON_SDK_DIGEST

# hadolint ignore=DL3006
FROM ${TRITON_IMAGE}:${TRITON_VERSION}-sdk@${TRITON_SDK_DIGEST}
COPY benchmarks/data/faces_uint8.json /opt/triton-face/faces_uint8.json
USER 1000:1000
WORKDIR /tmp
ENTRYPOINT ["perf_analyzer"]
