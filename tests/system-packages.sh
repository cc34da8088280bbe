#!/usr/bin/env bash
# Install the system packages that the tests on real hosts need: by apt as root or in CI, else say which are missing.
set -euo pipefail
missing=()
PATH=$PATH:/usr/sbin:/usr/lib/podman # where these lie that nobody calls by hand
browser=chromium
if command -v google-chrome >/dev/null; then browser=google-chrome; fi # does as well
for need in tmux rsync ssh:openssh-client podman runc conmon netavark aardvark-dns iptables ip:iproute2 mmdebstrap \
  "$browser" chromedriver:chromium-driver; do
  command -v "${need%%:*}" >/dev/null || missing+=("${need##*:}")
done
((${#missing[@]})) || exit 0
if [[ ${missing[*]} == *chromium* ]] && grep -qx 'ID=ubuntu' /etc/os-release 2>/dev/null; then
  # Ubuntu's packages of that name only bring the snap, and a snap cannot read files in /tmp, where the tests' are.
  echo "the tests need ${missing[*]}, and on Ubuntu Chromium is a snap, which cannot read the tests' files." >&2
  echo "Install Google Chrome and the chromedriver of its version: https://googlechromelabs.github.io/chrome-for-testing/" >&2
  exit 1
fi
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
