#!/usr/bin/python
"""Stop or remove a training run."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: training_run
short_description: Stop or remove a training run on its trainer
description:
  - A stop lets the training write a checkpoint, from which the next start goes on. M(training_runs) starts runs.
options:
  run_dir:
    description: The run directory on the trainer. Its name is the run_id.
  state:
    description: What the run should be.
    type: str
    choices: [stopped, absent]
    required: true
  stop_timeout:
    description: Seconds the trainer has for its checkpoint when it is stopped.
    type: int
    default: 120
attributes:
  check_mode:
    description: Predicts whether the run would be stopped or removed.
extends_documentation_fragment: [lora_forge, lora_forge.run_dir]
"""

EXAMPLES = r"""
- name: Stop it with a checkpoint
  training_run:
    run_dir: /workspace/lora-forge/runs/witness-c6746a504464
    state: stopped
"""

RETURN = "{}"

import pathlib

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.lora_forge.errors import report_errors
from ansible.module_utils.lora_forge.trainer import stopping

ARGUMENTS = {
    "run_dir": {"type": "path", "required": True},
    "state": {"type": "str", "choices": ["stopped", "absent"], "required": True},
    "stop_timeout": {"type": "int", "default": 120},
}


def main() -> None:
    module = AnsibleModule(ARGUMENTS, supports_check_mode=True)
    given = module.params
    run_dir = pathlib.Path(given["run_dir"]).resolve()
    with report_errors(module):
        end = stopping.stop if given["state"] == "stopped" else stopping.remove
        module.exit_json(changed=end(run_dir, given["stop_timeout"], module.check_mode))


if __name__ == "__main__":
    main()
