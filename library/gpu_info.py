#!/usr/bin/python
"""Hold the GPUs of a host against what a training needs."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: gpu_info
short_description: Hold the GPUs of a host against what a training needs
description:
  - Asks nvidia-smi once for the GPUs and once for the processes on them, and changes nothing.
  - Checks the driver against CUDA, the number of GPUs, their memory, compute capability and health, and who else
    holds their memory. Memory of a lora-forge run does not count against the training, which queues behind it.
  - Fails with one sentence for each problem, and its remedy, unless O(required) is false.
options:
  lock:
    description: The environment's lock on this host; the CUDA it pins decides which driver will do.
    type: path
  count:
    description: How many GPUs the host must have.
    type: int
    default: 1
  memory_gib:
    description: GiB of memory that the training is thought to need on each GPU. Less is a warning, no problem.
    type: float
  memory_floor_gib:
    description: GiB of memory that the training certainly needs on each GPU. When left out, 1 GiB is.
    type: float
  recipes:
    description:
      - The recipes of the trainings. Their keys on bf16, fp16, tf32, attention and packing decide which generation of
        GPUs will do.
    type: list
    elements: dict
    default: []
  lane:
    description: The UUID of the one GPU that is meant. Empty to check all of them.
    type: str
    default: ''
  program:
    description: nvidia-smi.
    type: path
    default: nvidia-smi
  timeout:
    description: Seconds that each call of nvidia-smi may take. A stuck driver makes it hang for ever.
    type: float
    default: 20
  required:
    description: Whether a problem is a failure.
    type: bool
    default: true
extends_documentation_fragment: [lora_forge, lora_forge.reads_only]
"""

EXAMPLES = r"""
- name: Refuse a host that cannot train this
  gpu_info:
    lock: /workspace/lora-forge/requirements/trainer-cuda.txt
    memory_gib: 24.4
    memory_floor_gib: 5.3
    recipes:
      - bf16: auto
        tf32: true
        attn_implementation: flash_attention_2

- name: Only tell
  gpu_info:
    required: false
"""

RETURN = r"""
driver:
  description: The version of the NVIDIA driver; null where there is none.
  returned: always
  type: str
  sample: 580.95.05
gpus:
  description: The GPUs. What the driver or the GPU does not tell is null.
  returned: always
  type: list
  elements: dict
  sample:
    - index: 0
      uuid: GPU-5a1f0c3e-8a5b-4f0e-9a57-3d1c2b4e6f70
      name: NVIDIA A100-SXM4-80GB
      memory_mib: 81920
      used_mib: 4
      free_mib: 81278
      compute_capability: "8.0"
      ecc_errors: 0
      remap_pending: false
      remap_failure: false
      retired_pending: null
      recovery_action: None
      mig: false
      fault: null
processes:
  description: The processes on the GPUs that can be seen, with the run directory of those that are lora-forge runs.
  returned: always
  type: list
  elements: dict
  sample:
    - gpu_uuid: GPU-5a1f0c3e-8a5b-4f0e-9a57-3d1c2b4e6f70
      pid: 4242
      name: python
      used_mib: 60000
      run: null
runs:
  description: The run directories of the lora-forge runs that train on this host now.
  returned: always
  type: list
  elements: str
  sample: [/workspace/lora-forge/runs/witness-c6746a504464]
problems:
  description: What keeps the training from running here; a sentence each.
  returned: always
  type: list
  elements: str
  sample:
    - "GPU 0, NVIDIA A100-SXM4-80GB: process 4242 (python) holds 78000 MiB; 3.2 of 79.4 GiB are left, and the weights
      alone take 5.4 GiB. End what holds it, or take another GPU"
warnings_found:
  description: What may end the training here, and keeps nobody from trying; a sentence each.
  returned: always
  type: list
  elements: str
  sample: []
"""

import pathlib

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.lora_forge.errors import report_errors
from ansible.module_utils.lora_forge.trainer import gpu, gpu_fitness

ARGUMENTS = {
    "lock": {"type": "path"},
    "count": {"type": "int", "default": 1},
    "memory_gib": {"type": "float"},
    "memory_floor_gib": {"type": "float"},
    "recipes": {"type": "list", "elements": "dict", "default": []},
    "lane": {"type": "str", "default": ""},
    "program": {"type": "path", "default": "nvidia-smi"},
    "timeout": {"type": "float", "default": 20},
    "required": {"type": "bool", "default": True},
}


def main() -> None:
    module = AnsibleModule(ARGUMENTS, supports_check_mode=True)
    given = module.params
    with report_errors(module):
        lock = pathlib.Path(given["lock"]) if given["lock"] else None
        # In check mode the lock may not be there yet.
        cuda = gpu_fitness.cuda_of_lock(lock.read_text(encoding="utf-8")) if lock and lock.exists() else None
        snapshot = gpu.query(given["program"], given["timeout"])
        wanted = gpu_fitness.GpuRequirements(
            cuda=cuda or "",
            count=given["count"],
            memory_gib=given["memory_gib"],
            floor_gib=given["memory_floor_gib"],
            lane=given["lane"],
            **gpu_fitness.recipe_requirements(given["recipes"]),
        )
        problems = gpu_fitness.problems(snapshot, wanted)
        facts = {key: snapshot[key] for key in ("driver", "gpus", "processes", "runs")}
        facts |= {"problems": problems, "warnings_found": gpu_fitness.warnings(snapshot, wanted)}
        if problems and given["required"]:
            module.fail_json(
                msg=f"{len(problems)} problem(s) with the GPU of this host:\n" + "\n".join(problems), **facts
            )
        module.exit_json(changed=False, **facts)


if __name__ == "__main__":
    main()
