#!/bin/bash
# Make the folder that all test hosts and simulated pods of this checkout share, as /shared: a copy of uv's cache, the
# trainer's environment made by the hosts' own Python, and its bytecode. It stays, so that the next tests have it. Prints
# its path.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$(dirname "$here")")
export CONTAINERS_CONF=$here/containers.conf
shared=$root/.hosts/shared
mkdir -p "$shared/env"
exec 9>"$shared/lock"
flock 9
if [ ! -e "$shared/uv-cache" ]; then
  # This machine's own environment first, so that uv's cache has what they need, too.
  (cd "$root" && PATH="$root/.venv/bin:$PATH" ansible-playbook playbooks/provision.yml -e role=witness -e fresh=true) >&2
  rm -rf "$shared/uv-cache.part" # of somebody who was killed
  # By links, on the same disk; on another one the hosts fill their own.
  if ! cp -T --archive --link "$("$root/.venv/bin/uv" cache dir)" "$shared/uv-cache.part" 2>/dev/null; then
    rm -rf "$shared/uv-cache.part"
    mkdir -p "$shared/uv-cache.part"
  fi
  mv "$shared/uv-cache.part" "$shared/uv-cache"
fi
if [ ! -e "$shared/env/trainer-cpu-$(sha256sum "$root/requirements/trainer-cpu.txt" | cut -c1-16)/.complete" ]; then
  certificates=/etc/ssl/certs/ca-certificates.crt
  wheels=${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}
  options=(--volume "$root:/src:ro" --volume "$shared:/shared" --env UV_CACHE_DIR=/shared/uv-cache)
  options+=(--volume "$certificates:$certificates:ro" --env "SSL_CERT_FILE=$certificates" --env "PIP_CERT=$certificates")
  [ -z "$wheels" ] || options+=(--volume "$wheels:$wheels:ro" --env "UV_FIND_LINKS=$wheels")
  podman run --rm --interactive "${options[@]}" "$("$here/image.sh")" sh -eu >&2 <<'END'
mkdir -p /tmp/ansible/module_utils
ln -s /src/module_utils/lora_forge /tmp/ansible/module_utils/lora_forge
PYTHONPATH=/tmp python3 -c '
import pathlib, sys
from ansible.module_utils.lora_forge.trainer import environment
root, locks = pathlib.Path("/shared"), pathlib.Path("/src/requirements")
uv = environment.find_uv("", root, locks / "uv.txt", sys.executable)
python = environment.interpreter("", False, root)
environment.ensure(root / "env", locks / "trainer-cpu.txt", uv, python, "cpu", locks / "trainer-cuda.txt")
'
END
fi
echo "$shared"
