#!/bin/sh
# Starts tritonserver with the options of a fleet. Arguments are further options; a later one wins.
#
#   MODEL_CONFIG_NAME  profile of the models: gpu or cpu; unset, the portable configs
#   ADMIN_KEY          key of the restricted endpoints; unset, a random key that is not printed keeps them closed
#   TLS_FOLDER         folder with tls.crt, tls.key and ca.crt: gRPC then requires client certificates of that CA
#   MODEL_REPOSITORY   the model repository; unset, the image's
set -eu

# NVIDIA's entry point prepares the CUDA libraries for an older driver, then starts this script again.
nvidia_entrypoint=/opt/nvidia/nvidia_entrypoint.sh
if [ -x "$nvidia_entrypoint" ] && [ -z "${TRITON_FACE_ENTERED:-}" ]; then
  export TRITON_FACE_ENTERED=1
  exec "$nvidia_entrypoint" "$0" "$@"
fi

repository=${MODEL_REPOSITORY:-/opt/triton-face/model_repository}
tuning=${MODEL_CONFIG_NAME:-}
tls=${TLS_FOLDER:-}
key=${ADMIN_KEY:-$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')}

stop() {
  echo "serve.sh: $1" >&2
  exit 2
}

# Triton splits its options at these, and would take a part of the key for the whole.
case $key in *[!A-Za-z0-9_-]*) stop "ADMIN_KEY may have letters, digits, - and _ alone" ;; esac
[ ${#key} -ge 16 ] || stop "ADMIN_KEY is shorter than 16 characters"

if [ -n "$tuning" ]; then
  # Triton itself falls back to the portable configs without a word.
  [ -f "$repository/align_mask/configs/$tuning.pbtxt" ] || stop "there is no tuning $tuning in $repository"
  set -- "--model-config-name=$tuning" "$@"
fi
# The CUDA memory pool of each GPU; numbers without a GPU are ignored. When Triton's default of 64 MB is full,
# outputs have come back empty with status OK. With the portable configs four instances of hog hold up to 128
# faces each, input and output: 4 * 128 * (150,528 + 21,632) bytes = 88 MB. The rest is for align_mask's.
for gpu in 0 1 2 3 4 5 6 7; do
  set -- "--cuda-memory-pool-byte-size=$gpu:268435456" "$@"
done
if [ -n "$tls" ]; then
  for file in tls.crt tls.key ca.crt; do
    [ -r "$tls/$file" ] || stop "no $tls/$file: TLS_FOLDER needs tls.crt, tls.key and ca.crt"
  done
  set -- --grpc-use-ssl=true --grpc-use-ssl-mutual=true "--grpc-server-cert=$tls/tls.crt" \
    "--grpc-server-key=$tls/tls.key" "--grpc-root-cert=$tls/ca.crt" "$@"
fi

closed=model-repository,shared-memory,trace,logging

# --grpc-max-connection-age, ms: a client's channel looks for the service's pods again when its connection is
# ended, so this is how soon a new pod gets work, and how long before its end a pod must be out of the service
# (the manifests' preStop). The grace lets answers under way arrive.
# --exit-timeout-secs: as long as a queue lets requests wait (10 s), for each of the ensemble's steps.
# --metrics-config: quantiles of latencies, two of them; the default's five are 60 series more a pod.
# shm-default-byte-size: of each Python stub; 128 crops with all their outputs fit without growth.
# shm_regions.py removes the shared memory of servers that were killed before it starts this one.
exec python3 -I "$(dirname "$0")/shm_regions.py" tritonserver \
  "--model-repository=$repository" \
  --model-control-mode=none \
  --disable-auto-complete-config \
  --strict-readiness=true \
  --exit-on-error=true \
  --exit-timeout-secs=30 \
  --allow-sagemaker=false \
  --allow-vertex-ai=false \
  "--grpc-restricted-protocol=$closed:admin-key=$key" \
  "--http-restricted-api=$closed:admin-key=$key" \
  --grpc-max-connection-age=30000 \
  --grpc-max-connection-age-grace=30000 \
  --metrics-config=summary_latencies=true \
  --metrics-config=summary_quantiles=0.5:0.05,0.99:0.001 \
  --backend-config=python,shm-default-byte-size=67108864 \
  "$@"
