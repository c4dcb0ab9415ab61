#!/bin/sh
# Starts tritonserver with the options of production. Arguments are added as further options; a later option wins.
#
#   MODEL_CONFIG_NAME  profile of the models, gpu or cpu; default: the portable configs
#   ADMIN_KEY          key of the restricted endpoints; default: random and not printed, so they stay closed
#   TLS_FOLDER         folder with tls.crt, tls.key and ca.crt: gRPC then requires client certificates of that CA
#   MODEL_REPOSITORY   the model repository; default: the image's
set -eu

# NVIDIA's entry point sets up CUDA's compatibility with older drivers, then executes this script again.
nvidia_entrypoint=/opt/nvidia/nvidia_entrypoint.sh
if [ -x "$nvidia_entrypoint" ] && [ -z "${TRITON_FACE_ENTERED:-}" ]; then
  export TRITON_FACE_ENTERED=1
  exec "$nvidia_entrypoint" "$0" "$@"
fi

repository=${MODEL_REPOSITORY:-/opt/triton-face/model_repository}
profile=${MODEL_CONFIG_NAME:-}
tls=${TLS_FOLDER:-}
key=${ADMIN_KEY:-$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')}

stop() {
  echo "serve.sh: $1" >&2
  exit 2
}

# Triton splits the option at other characters and would use only a part of the key.
case $key in *[!A-Za-z0-9_-]*) stop "ADMIN_KEY may only contain letters, digits, - and _" ;; esac
[ ${#key} -ge 16 ] || stop "ADMIN_KEY is shorter than 16 characters"

if [ -n "$profile" ]; then
  # For an unknown profile Triton uses the portable configs without a message.
  [ -f "$repository/align_mask/configs/$profile.pbtxt" ] || stop "$repository has no profile $profile"
  set -- "--model-config-name=$profile" "$@"
fi
# CUDA memory pool of each GPU; Triton ignores numbers without a GPU. When the default of 64 MB was full, requests
# returned empty outputs with status OK. In the portable configs four instances of hog hold inputs and outputs of
# 128 faces each: 4 * 128 * (150,528 + 21,632) bytes = 88 MB. The rest is for align_mask.
for gpu in 0 1 2 3 4 5 6 7; do
  set -- "--cuda-memory-pool-byte-size=$gpu:268435456" "$@"
done
if [ -n "$tls" ]; then
  for file in tls.crt tls.key ca.crt; do
    [ -r "$tls/$file" ] || stop "cannot read $tls/$file: TLS_FOLDER needs tls.crt, tls.key and ca.crt"
  done
  set -- --grpc-use-ssl=true --grpc-use-ssl-mutual=true "--grpc-server-cert=$tls/tls.crt" \
    "--grpc-server-key=$tls/tls.key" "--grpc-root-cert=$tls/ca.crt" "$@"
fi

restricted=model-repository,shared-memory,trace,logging

# --grpc-max-connection-age, ms: a client looks up the pods again when its connection ends. So a new pod gets load
# within this time, and a stopping pod must have left the Service for this time before it ends (preStop in the
# manifests). The grace period lets running requests finish.
# --exit-timeout-secs: each of the ensemble's three steps may wait in a queue for 10 s.
# --metrics-config: two quantiles of latencies; the default of five adds 60 series per pod.
# shm-default-byte-size: shared memory of each stub process; holds 128 crops with all outputs without growing.
# shm_regions.py first removes the shared memory of killed servers.
exec python3 -I "$(dirname "$0")/shm_regions.py" tritonserver \
  "--model-repository=$repository" \
  --model-control-mode=none \
  --disable-auto-complete-config \
  --strict-readiness=true \
  --exit-on-error=true \
  --exit-timeout-secs=30 \
  --allow-sagemaker=false \
  --allow-vertex-ai=false \
  "--grpc-restricted-protocol=$restricted:admin-key=$key" \
  "--http-restricted-api=$restricted:admin-key=$key" \
  --grpc-max-connection-age=30000 \
  --grpc-max-connection-age-grace=30000 \
  --metrics-config=summary_latencies=true \
  --metrics-config=summary_quantiles=0.5:0.05,0.99:0.001 \
  --backend-config=python,shm-default-byte-size=67108864 \
  "$@"
