#!/bin/sh
# Starts tritonserver as a fleet needs it. Arguments are further options of tritonserver; a later one wins.
#
#   MODEL_CONFIG_NAME  a tuning of the models: gpu, cpu, or none for the portable configs
#   ADMIN_KEY          opens what callers may not use; without one nobody can, the key is random
#   TLS_FOLDER         tls.crt, tls.key and ca.crt for gRPC: callers show a certificate of that CA
#   MODEL_REPOSITORY   by default the image's
set -eu

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
if [ "$tuning" = gpu ]; then
  # Full, the pool of 64 MB has given empty outputs with status OK. Three instances of hog with 128 faces each,
  # in and out, are 66 MB.
  set -- --cuda-memory-pool-byte-size=0:268435456 "$@"
fi
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
