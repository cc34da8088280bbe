#!/usr/bin/python
"""Ask Slurm whether it would take a job."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: slurm_check
short_description: Ask Slurm whether it would take a job that asks for this
description:
  - Submits nothing. Fails with Slurm's own sentence where a job would be refused, as with an unknown partition or
    account, more GPUs than a node has, or more time than is allowed; and where Slurm is too old.
  - While nodes are down or drained, Slurm cannot tell what they have, and the job itself is refused or waits.
  - Does not ask where one of the runs is in the queue, or has finished, as Slurm took a job for it. A limit that is
    reached by now, or a partition that takes no more jobs, keeps nobody from what is there; the launch tells what is
    refused.
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
  max_gpu_hours:
    description: The most GPU hours that a job may take; 0 for no cap.
    type: float
    default: 0
  nodes:
    description: How many nodes a run takes.
    type: int
    default: 1
  runs:
    description: The names of the runs that such jobs are for.
    type: list
    elements: str
    default: []
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
    runs: [witness-c6746a504464]
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
from ansible.module_utils.lora_forge.trainer import runs, slurm, slurm_commands, slurm_options

ARGUMENTS = {
    "root": {"type": "path", "required": True},
    "job": {"type": "dict", "default": {}},
    "gpus": {"type": "int", "default": 0},
    "max_gpu_hours": {"type": "float", "default": 0},
    "nodes": {"type": "int", "default": 1},
    "runs": {"type": "list", "elements": "str", "default": []},
    "stop_timeout": {"type": "int", "default": 120},
}


def main() -> None:
    module = AnsibleModule(ARGUMENTS, supports_check_mode=True)
    given = module.params
    with report_errors(module):
        if not slurm_commands.has_slurm():
            raise UserError(slurm_commands.NO_SBATCH)
        if wrong := slurm_options.problems(given["job"], given["gpus"], given["stop_timeout"]):
            raise UserError("; ".join(wrong))
        if capped := slurm_options.over_cap(given["job"], given["gpus"] * given["nodes"], given["max_gpu_hours"]):
            raise UserError(capped)
        try:
            version, root = slurm.check_version(), pathlib.Path(given["root"])
            refused = ""
            if not runs.any_launched(root, given["runs"]):
                refused = slurm.try_out(given["job"], root / "runs/any", given["stop_timeout"], nodes=given["nodes"])
        except slurm_commands.Silent as error:
            raise UserError(f"Slurm does not answer: {error}. Run it again when it does") from None
        if refused:
            # Of what it was asked for too much it says «Requested node configuration is not available», and no more.
            asked = ", ".join(f"{key} {value}" for key, value in given["job"].items()) or "nothing"
            raise UserError(
                f"Slurm does not take such a job: {refused}\nrun_slurm in the inventory asks for {asked}; "
                "«sinfo -o '%P %G %c %m %l %f'» on the login node shows what there is"
            )
        module.exit_json(changed=False, version=version)


if __name__ == "__main__":
    main()
