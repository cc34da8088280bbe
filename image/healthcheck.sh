#!/bin/sh
# The health of a container of the training image: the GPU gate's own test, in the image's own environment.
# With RUN_PROFILE=rehearsal the CPU computes, as a rehearsal needs no GPU.
# A run that trains here is the better proof, and may need all the memory.
set -eu
if grep -qsz '^LORA_FORGE_RUN_DIR=' /proc/[0-9]*/environ; then
  echo "a run trains here"
  exit 0
fi
if [ "${RUN_PROFILE:-}" = rehearsal ]; then set -- --device cpu; fi
code=0
timeout 300 /opt/lora-forge/trainer/bin/python /opt/lora-forge/gpu_check.py "$@" || code=$?
if [ "$code" = 124 ]; then
  echo "the GPU does not answer: nothing was computed within 300 s. Reboot the host; replace a rented one"
fi
[ "$code" = 0 ]
