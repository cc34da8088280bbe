#!/usr/bin/python
"""Tell what is on a trainer: its runs and its GPUs."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: trainer_info
short_description: Tell what is true of all runs on a trainer, and how busy its GPUs are
description:
  - One call for a whole host. Concludes the state of each run as M(training_run_info) does.
  - The action plugin of the same name turns a trainer that does not answer into RV(silent), so that asking many
    trainers is never a failure.
options:
  stall_timeout:
    default: 1800
  only:
    description: The names of the runs that are asked for, also where there is nothing of them. The GPUs are not asked
      then.
    type: list
    elements: str
  paths:
    description: Files and folders of which it is told whether they are there.
    type: list
    elements: path
    default: []
extends_documentation_fragment: [lora_forge, lora_forge.reads_only, lora_forge.root, lora_forge.stall_timeout]
"""

EXAMPLES = r"""
- name: Ask a trainer
  trainer_info:
    root: /workspace/lora-forge
  register: trainer_seen
"""

RETURN = r"""
runs:
  description: For each run what training_run_info returns of it, without events.
  returned: when the trainer answered
  type: list
  elements: dict
  sample: [{run_id: witness-c6746a504464, state: running}]
gpus:
  description: Index, UUID, name, memory (MiB) and use (percent) of each GPU; empty without any.
  returned: when the trainer answered
  type: list
  elements: dict
  sample: [{index: 0, memory_mib: 81920, name: NVIDIA A100-SXM4-80GB, used_mib: 41000, use: 97, uuid: GPU-5a1f}]
missing:
  description: Of O(paths) those that are not there.
  returned: when O(paths) are given, and one is not
  type: list
  elements: str
  sample: [/workspace/lora-forge/models/tiny-3f9a2c1b77e0/config.json]
silent:
  description: Why the trainer did not answer.
  returned: when it did not
  type: str
  sample: 'Failed to connect to the host via ssh: Connection refused'
"""

import os
import pathlib

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.lora_forge.errors import report_errors
from ansible.module_utils.lora_forge.trainer import gpu, runs

ARGUMENTS = {
    "root": {"type": "path", "required": True},
    "stall_timeout": {"type": "float", "default": 1800},
    "only": {"type": "list", "elements": "str"},
    "paths": {"type": "list", "elements": "path", "default": []},
}


def main() -> None:
    module = AnsibleModule(ARGUMENTS, supports_check_mode=True)
    given = module.params
    with report_errors(module):
        gpus = gpu.gpu_usage() if given["only"] is None else []
        listed = runs.observe_all(pathlib.Path(given["root"]), gpus, given["stall_timeout"], given["only"])
        missing = [path for path in given["paths"] if not os.path.exists(path)]
        told = {"missing": missing} if missing else {}
        module.exit_json(changed=False, runs=[run.as_dict() for run in listed], gpus=gpus, **told)


if __name__ == "__main__":
    main()
