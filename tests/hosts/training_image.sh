#!/bin/bash
# Build the training image as `make image` does, but on the base of the test hosts, since CUDA's need not be at hand. The
# downloads are this machine's own: uv's cache, and a folder of wheels where there is one. Who comes while it is being
# built waits, and finds every layer there.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$(dirname "$here")")
export CONTAINERS_CONF=$here/containers.conf
base=$("$here/image.sh")
cache=$("$root/.venv/bin/uv" cache dir)
certificates=/etc/ssl/certs/ca-certificates.crt
wheels=${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}
options=(--volume "$certificates:$certificates:ro" --build-arg "SSL_CERT_FILE=$certificates" --build-arg "PIP_CERT=$certificates")
options+=(--volume "$cache:/uv-cache" --build-arg UV_CACHE_DIR=/uv-cache)
if [ -n "$wheels" ]; then
  options+=(--volume "$wheels:$wheels:ro" --build-arg "UV_FIND_LINKS=$wheels")
fi
# A pod that is rented should not compile what it imports; here it would take longer than what it saves.
options+=(--build-arg UV_COMPILE_BYTECODE=0 --label lora-forge.test=1)
mkdir -p "$cache" "$root/.hosts"
exec 9>/run/lock/lora-forge-training-image.lock # one for all checkouts: who prunes takes layers from who builds
flock 9
"$root/.venv/bin/python" "$root/image/build.py" --engine podman --base "$base" "$@" "${options[@]}"
# The one before, of some gigabytes. A build that was killed may hold it: then it stays, and the new one is there.
podman image prune --force --filter label=lora-forge.test=1 >/dev/null || echo "an older image could not be removed" >&2
