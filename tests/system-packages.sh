#!/usr/bin/env bash
# Install the system packages that the tests on real hosts need: by apt as root or in CI, else say which are missing.
set -euo pipefail
missing=()
PATH=$PATH:/usr/sbin:/usr/lib/podman # where these lie that nobody calls by hand
for need in tmux rsync ssh:openssh-client podman runc conmon netavark aardvark-dns iptables mmdebstrap; do
  command -v "${need%%:*}" >/dev/null || missing+=("${need##*:}")
done
((${#missing[@]})) || exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "the tests need ${missing[*]}; installing by apt-get"
  apt-get update -qq && apt-get install -y -qq "${missing[@]}" >/dev/null
elif [ "${CI:-}" = true ] && command -v sudo >/dev/null; then
  echo "the tests need ${missing[*]}; installing by sudo apt-get"
  sudo apt-get update -qq && sudo apt-get install -y -qq "${missing[@]}" >/dev/null
else
  echo "the tests need ${missing[*]}. Install: sudo apt-get install ${missing[*]}" >&2
  exit 1
fi
