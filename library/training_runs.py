#!/usr/bin/python
"""Start training runs."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: training_runs
short_description: Start training runs on their trainer
description:
  - Starts them one after the other, in their order. What goes wrong with one keeps no other from its start.
  - A run that is alive, queued or finished is attached to, never started twice.
  - A run that was stopped, failed or killed resumes from its last whole checkpoint.
  - The inputs must lie in each run directory before, which are C(axolotl.yml), and supervisor.py, rundir.py and the
    Axolotl plugin in C(programs/); or in C(incoming/) of it, from where a start takes them.
  - M(training_run) stops a run.
options:
  runs:
    description:
      - Of each its C(run_dir), whose name is the run_id, and what it is launched with.
      - That is C(command), the trainer's command line; C(environment), which has no secrets; C(lane), the lane it runs
        on, one run at a time on a lane of a host, which is locked in C(lane_dir), a folder in which every user of the
        host may write; C(stop_timeout), the seconds that it has for its checkpoint when it is stopped.
      - C(prepared) is the cache of tokenised data, which is deleted before a start when it was left half-made.
        C(processes) says how many train; several are told to stop by a file, as torchrun would not let them finish, and
        C(answer_command) answers the agent's cases then. C(facts) are kept in run.json for people and later questions.
      - With Slurm C(slurm) is what a job asks for, as run_slurm of the role run has it, and C(gate) a command line that
        must end well on each node before the training starts there; C(nodes) says how many it takes, and C(port) is the
        first one of the ports on which several may meet; the id of the job decides which. C(at_once) is how many jobs
        of the trainer Slurm may run at once; 0 for any number.
    type: list
    elements: dict
    required: true
  secrets:
    description: Of each run, by its run_id, secret environment variables of the trainer process. Kept in a 0600 file
      until the run is final.
    type: dict
    default: {}
  backend:
    description: What keeps the supervisors running.
    type: str
    choices: [auto, systemd, tmux, process, slurm]
    default: auto
  within:
    description: Seconds after which no further one is begun, so that a call has an end. The first one always is.
    type: float
    default: 30
attributes:
  check_mode:
    description: Predicts which would be started.
extends_documentation_fragment: [lora_forge]
"""

EXAMPLES = r"""
- name: Start a run
  training_runs:
    runs:
      - run_dir: /workspace/lora-forge/runs/witness-c6746a504464
        command: [/workspace/lora-forge/env/5c1e0a9d3b7f2c64/bin/python, -m, axolotl.cli.train, axolotl.yml]
"""

RETURN = r"""
runs:
  description:
    - Those that were begun, in their order; whoever asked for more calls again.
    - Each has its C(run_id), and whether it was C(changed), started that is; the C(backend) that keeps its supervisor
      running, the C(attach_command) that shows it on its trainer, and a C(message) of what that means for a reboot.
      C(refused) says why one was not started.
  returned: success
  type: list
  elements: dict
  sample: [{run_id: witness-c6746a504464, changed: true, backend: tmux, attach_command: tmux attach -t w, message: ''}]
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.lora_forge.errors import report_errors
from ansible.module_utils.lora_forge.trainer import launching

ARGUMENTS = {
    "runs": {"type": "list", "elements": "dict", "required": True},
    "secrets": {"type": "dict", "default": {}, "no_log": True},
    "backend": {"type": "str", "choices": ["auto", "systemd", "tmux", "process", "slurm"], "default": "auto"},
    "within": {"type": "float", "default": 30},
}


def main() -> None:
    module = AnsibleModule(ARGUMENTS, supports_check_mode=True)
    given = module.params
    with report_errors(module):
        wanted, within = given["backend"], given["within"]
        told = launching.start_all(given["runs"], given["secrets"], wanted, within, module.check_mode)
        module.exit_json(changed=any(run["changed"] for run in told), runs=told)


if __name__ == "__main__":
    main()
