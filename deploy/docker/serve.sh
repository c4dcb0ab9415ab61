#!/bin/sh
# Starts tritonserver with the production options. Arguments are appended as further options; of two equal options
# the later one applies.
#
#   MODEL_CONFIG_NAME  profile of the models, gpu or cpu; default: the portable configs
#   ADMIN_KEY          key of the restricted endpoints; default: random and not printed, so nobody can use them
#   TLS_FOLDER         folder with tls.crt, tls.key and ca.crt: gRPC then requires client certificates of that CA
#   MODEL_REPOSITORY   model repository; default: the one in the image
#   AU_REPOSITORY      further repository, with the models au and action_units; default: /opt/triton-face/au_repository,
#                      if it exists (built into the image, or mounted)
set -eu

# NVIDIA's entry point prepares the CUDA environment, then executes this script again.
nvidia_entrypoint=/opt/nvidia/nvidia_entrypoint.sh
if [ -x "$nvidia_entrypoint" ] && [ -z "${TRITON_FACE_ENTRYPOINT_DONE:-}" ]; then
  export TRITON_FACE_ENTRYPOINT_DONE=1
  exec "$nvidia_entrypoint" "$0" "$@"
fi

repository=${MODEL_REPOSITORY:-/opt/triton-face/model_repository}
au_repository=${AU_REPOSITORY:-/opt/triton-face/au_repository}
profile=${MODEL_CONFIG_NAME:-}
tls=${TLS_FOLDER:-}
key=${ADMIN_KEY:-$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')}

stop() {
  echo "serve.sh: $1" >&2
  exit 2
}

# At other characters Triton would split the option and use only a part of the key.
case $key in *[!A-Za-z0-9_-]*) stop "ADMIN_KEY may only contain letters, digits, - and _" ;; esac
[ ${#key} -ge 16 ] || stop "ADMIN_KEY is shorter than 16 characters"

if [ -n "$profile" ]; then
  # For an unknown profile Triton uses the portable configs without a message.
  [ -f "$repository/align_mask/configs/$profile.pbtxt" ] || stop "$repository has no profile $profile"
  set -- "--model-config-name=$profile" "$@"
fi
if [ -n "${AU_REPOSITORY:-}" ] || [ -e "$au_repository" ]; then
  for file in au/config.pbtxt au/1/model.onnx action_units/config.pbtxt; do
    [ -r "$au_repository/$file" ] || stop "cannot read $au_repository/$file; \
\`python -m export au --weights FILE.skops\` writes the folder of action units"
  done
  set -- "--model-repository=$au_repository" "$@"
fi
# CUDA memory pool of each GPU; Triton ignores indices without a GPU. With a full pool (default: 64 MB) requests can
# return empty outputs with status OK. In the portable configs four instances of hog hold inputs and outputs of
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

# --grpc-max-connection-age, ms: when its connection ends, a client looks up the pods again. A new pod therefore gets
# load within this time. A stopping pod must keep running for this time after it has left the Service (preStop in the
# manifests). The grace period (--grpc-max-connection-age-grace, ms) lets running requests finish.
# --exit-timeout-secs: a request may wait 10 s in the queue of each of an ensemble's three or four steps.
# --metrics-config: two latency quantiles; Triton's default of five adds 60 series per pod.
# shm-default-byte-size: initial shared memory of each stub process; 128 crops with all outputs fit without growth.
# shm_regions.py removes the shared memory of killed servers, then executes tritonserver.
exec python3 -I "$(dirname "$0")/shm_regions.py" tritonserver \
  "--model-repository=$repository" \
  --model-control-mode=none \
  --disable-auto-complete-config \
  --strict-readiness=true \
  --exit-on-error=true \
  --exit-timeout-secs=40 \
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
