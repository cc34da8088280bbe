#!/usr/bin/python
"""Ask Slurm whether a job could ever run."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: slurm_check
short_description: Ask Slurm whether a job that asks for this could ever run
description:
  - Submits nothing. Fails with Slurm's own sentence where a job could never run, as with an unknown partition or
    account, more GPUs than a node has, or more time than is allowed; and where Slurm is too old.
  - Fails, too, where Slurm does not answer.
options:
  job:
    description: What a job asks for, as run_slurm of the role run has it.
    type: dict
    default: {}
  gpus:
    description: How many GPUs a run takes; 0 for a rehearsal.
    type: int
    default: 0
  nodes:
    description: How many nodes a run takes.
    type: int
    default: 1
  stop_timeout:
    description: Seconds the trainer has for its checkpoint when it is stopped.
    type: int
    default: 120
attributes:
  check_mode:
    description: Is the same in it.
extends_documentation_fragment: [lora_forge, lora_forge.root]
"""

EXAMPLES = r"""
- name: Ask Slurm
  slurm_check:
    root: /scratch/lora-forge
    job: {partition: gpu, gres: 'gpu:1', time: '12:00:00'}
"""

RETURN = r"""
version:
  description: Slurm's own word on its version.
  returned: success
  type: str
  sample: slurm 24.11.5
"""

import pathlib

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.lora_forge.errors import UserError, report_errors
from ansible.module_utils.lora_forge.trainer import slurm

ARGUMENTS = {
    "root": {"type": "path", "required": True},
    "job": {"type": "dict", "default": {}},
    "gpus": {"type": "int", "default": 0},
    "nodes": {"type": "int", "default": 1},
    "stop_timeout": {"type": "int", "default": 120},
}


def main() -> None:
    module = AnsibleModule(ARGUMENTS, supports_check_mode=True)
    given = module.params
    with report_errors(module):
        if not slurm.has_slurm():
            raise UserError("run_backend is slurm, but there is no sbatch here; name a login node of the cluster")
        if wrong := slurm.problems(given["job"], given["gpus"]):
            raise UserError("; ".join(wrong))
        try:
            version = slurm.check_version()
            anything = pathlib.Path(given["root"]) / "runs" / "any"
            refused = slurm.try_out(given["job"], anything, given["stop_timeout"], nodes=given["nodes"])
        except slurm.Silent as error:
            raise UserError(f"Slurm does not answer: {error}. Run it again when it does") from None
        if refused:
            raise UserError(f"Slurm would never start such a job: {refused}. See run_slurm in the inventory")
        module.exit_json(changed=False, version=version)


if __name__ == "__main__":
    main()
