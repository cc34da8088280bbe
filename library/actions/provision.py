"""Documentation of the action of this name: no module, and nothing that runs on a host."""

DOCUMENTATION = r"""
---
module: provision
short_description: Bring what a trainer needs of this checkout, and make its environment
description:
  - Brings locks and programs by M(transfer), and makes the environment by M(trainer_environment).
  - With O(bring) or O(make) one of them is left out, so that other steps can come between.
options:
  trainer:
    description: What the trainer is to get.
    type: dict
    required: true
    suboptions:
      root:
        description: Where everything of lora-forge lies on the trainer.
        type: path
        required: true
      lock:
        description: The name of the lock in C(requirements/), from which its environment is made.
        type: str
        choices: [trainer-cpu, trainer-cuda]
        required: true
      runs:
        description: The runs that it has to be fit for, as planned.
        type: list
        elements: dict
        required: true
      uv:
        description: The uv program on the trainer; empty for the pinned one.
        type: str
        required: true
      python:
        description: The CPython of the environment, a version or a path; empty for any that the locks are for.
        type: str
        required: true
      python_download:
        description: Whether uv may fetch one.
        type: bool
        required: true
      torch_backend:
        description: uv's torch backend; empty where torch comes from the registry or a folder of wheels.
        type: str
        required: true
      transfer:
        description: C(timeout) and C(options) of M(transfer). Needed with O(bring).
        type: dict
  bring:
    description: Whether files are brought.
    type: bool
    default: true
  make:
    description: Whether the environment is made.
    type: bool
    default: true
attributes:
  check_mode:
    description: Predicts what would be brought, and whether an environment would be made.
extends_documentation_fragment: [lora_forge, lora_forge.action]
"""

EXAMPLES = r"""
- name: Bring the locks, and make the environment
  provision:
    trainer:
      root: /workspace/lora-forge
      lock: trainer-cuda
      runs: "{{ run_plans }}"
      uv: ''
      python: ''
      python_download: false
      torch_backend: ''
      transfer: {timeout: 60, options: []}
"""

RETURN = r"""
python:
  description: The environment's Python, be it made yet or not.
  returned: success
  type: str
  sample: /workspace/lora-forge/env/trainer-cuda-5c1e0a9d3b7f2c64/bin/python
models:
  description: The base models that the runs need, each once. A rehearsal's is made, not fetched.
  returned: success
  type: list
  elements: dict
  sample: [{model: Qwen/Qwen2.5-7B-Instruct, revision: ''}]
gpu:
  description: Options for M(gpu_info).
  returned: success
  type: dict
  sample: {lock: /workspace/lora-forge/requirements/trainer-cuda.txt, memory_gib: 24.4}
"""
