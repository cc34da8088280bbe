#!/bin/bash
# Five tests that a slow or busy machine endangers (marked «soak»), again and again, beside busy loops. Stops at the first
# failure. TIMES is how often (20), LOOPS how many loops run beside them (4).
set -eu
cd "$(dirname "$0")/.."
trap 'kill $(jobs -p) 2>/dev/null' EXIT
for _ in $(seq "${LOOPS:-4}"); do (while :; do :; done) & done
for round in $(seq "${TIMES:-20}"); do
  echo "round $round of ${TIMES:-20}"
  OMP_NUM_THREADS=1 .venv/bin/pytest -q --numprocesses 4 --dist loadscope -m soak "$@" tests/e2e tests/integration
done
