#!/usr/bin/python
"""Compute something real on the GPUs of a host."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: gpu_check
short_description: Compute something real on the GPUs of a host
description:
  - Runs C(gpu_check.py) of the role trainer in the environment that trains. That compiles C, multiplies matrices, runs
    a 4-bit layer and a Triton kernel, and compares the results with those of a CPU.
  - nvidia-smi may be fine where CUDA is broken, or where a training cannot compile. Fails with a sentence that says
    what is wrong, and what to do.
options:
  python:
    description: The Python of the environment.
    type: str
    required: true
  program:
    description: C(gpu_check.py) on the host.
    type: path
    required: true
  lane:
    description: The UUIDs of the GPUs that are checked; all when left out.
    type: list
    elements: str
    default: []
  options:
    description: Further options of the program, such as the device it computes on.
    type: list
    elements: str
    default: []
  timeout:
    description: Seconds that it may take. A stuck driver makes a call of CUDA hang for ever.
    type: float
    default: 300
extends_documentation_fragment: [lora_forge, lora_forge.reads_only]
"""

EXAMPLES = r"""
- name: See whether the first GPU computes
  gpu_check:
    python: /workspace/lora-forge/env/trainer-cuda-5c1e0a9d3b7f2c64/bin/python
    program: /workspace/lora-forge/gpu_check.py
    lane: [GPU-5a1f0c3e-8a5b-4f0e-9a57-3d1c2b4e6f70]
"""

RETURN = r"""
device:
  description: The name of the last GPU; null where nothing was computed.
  returned: success
  type: str
  sample: NVIDIA A100-SXM4-80GB
bf16_tflops:
  description: 10**12 operations a second in bf16, of the slowest GPU; null where nothing was computed.
  returned: success
  type: float
  sample: 243.1
seconds:
  description: How long it took.
  returned: success
  type: float
  sample: 14.2
bad_gpu:
  description: Whether another machine may do better. It is false where the image has no compiler, as another machine
    with the same image has none either.
  returned: failure
  type: bool
  sample: true
"""

import pathlib

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.lora_forge.errors import report_errors
from ansible.module_utils.lora_forge.trainer import gpu_check

ARGUMENTS = {
    "python": {"type": "str", "required": True},
    "program": {"type": "path", "required": True},
    "lane": {"type": "list", "elements": "str", "default": []},
    "options": {"type": "list", "elements": "str", "default": []},
    "timeout": {"type": "float", "default": 300},
}


def main() -> None:
    module = AnsibleModule(ARGUMENTS, supports_check_mode=True)
    given = module.params
    with report_errors(module):
        report, problem, bad_gpu = gpu_check.compute(
            given["python"], pathlib.Path(given["program"]), given["lane"], given["options"], given["timeout"]
        )
        if problem:
            module.fail_json(msg=problem, bad_gpu=bad_gpu)
        module.exit_json(changed=False, **report)


if __name__ == "__main__":
    main()
