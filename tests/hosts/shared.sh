#!/bin/bash
# Make the folder that all test hosts and simulated pods of this checkout share, as /shared: a copy of uv's cache, the
# trainer's environment that the first of them makes, and its bytecode. It stays, so that the next tests have it. Prints
# its path.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
shared=$root/.hosts/shared
mkdir -p "$shared"
exec 9>"$shared/lock"
flock 9
if [ ! -e "$shared/uv-cache" ]; then
  rm -rf "$shared/uv-cache.part" # of somebody who was killed
  # By links, on the same disk; on another one the hosts fill their own.
  if ! cp -T --archive --link "$("$root/.venv/bin/uv" cache dir)" "$shared/uv-cache.part" 2>/dev/null; then
    rm -rf "$shared/uv-cache.part"
    mkdir -p "$shared/uv-cache.part"
  fi
  mkdir -p "$shared/env"
  mv "$shared/uv-cache.part" "$shared/uv-cache"
fi
echo "$shared"
