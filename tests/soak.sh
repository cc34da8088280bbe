#!/bin/bash
# The tests marked «soak»: long faults and many kills, which a busy machine endangers most. Beside busy loops; stops at the
# first failure. TIMES is how often (once), LOOPS how many loops run beside them (4).
set -eu
cd "$(dirname "$0")/.."
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
for _ in $(seq "${LOOPS:-4}"); do (while :; do :; done) & done
for round in $(seq "${TIMES:-1}"); do
  echo "round $round of ${TIMES:-1}"
  OMP_NUM_THREADS=1 .venv/bin/pytest -q --numprocesses 4 --dist loadgroup -m soak "$@" tests/e2e tests/integration
done
