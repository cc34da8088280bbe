#!/usr/bin/python
"""Start, stop or remove a training run."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: training_run
short_description: Start, stop or remove a training run on its trainer
description:
  - A run that is alive, queued or finished is attached to, never started twice.
  - A run that was stopped, failed or killed resumes from its last whole checkpoint.
  - The inputs must lie in the run directory before, which are C(axolotl.yml), and supervisor.py, rundir.py and the
    Axolotl plugin in C(programs/).
options:
  run_dir:
    description: The run directory on the trainer. Its name is the run_id.
  state:
    description: What the run should be.
    type: str
    choices: [started, stopped, absent]
    default: started
  command:
    description: The trainer's command line. Needed for O(state=started).
    type: list
    elements: str
    default: []
  lane:
    description: The lane it runs on; one run at a time on a lane of a host.
    type: str
    default: cpu
  lane_dir:
    description: Where lanes are locked, a folder in which every user of the host may write; /tmp when left out.
    type: path
  backend:
    description: What keeps the supervisor running.
    type: str
    choices: [auto, systemd, tmux, process, slurm]
    default: auto
  environment:
    description: Environment variables of the trainer process.
    type: dict
    default: {}
  secrets:
    description: Secret environment variables of the trainer process. Kept in a 0600 file until the run is final.
    type: dict
    default: {}
  stop_timeout:
    description: Seconds the trainer has for its checkpoint when it is stopped.
    type: int
    default: 120
  prepared:
    description: The trainer's cache of tokenised data. Deleted before a start when it was left half-made.
    type: path
  processes:
    description: How many processes train; several are told to stop by a file, as torchrun would not let them finish.
    type: int
    default: 1
  answer_command:
    description: Answers the agent's cases when several processes have trained; empty where the training does it itself.
    type: list
    elements: str
    default: []
  facts:
    description: What is known of the run, kept in run.json for people and later questions.
    type: dict
    default: {}
  slurm:
    description: With Slurm what a job asks for, as run_slurm of the role run has it.
    type: dict
    default: {}
  gate:
    description: With Slurm a command line that must end well on each node before the training starts there.
    type: list
    elements: str
    default: []
  nodes:
    description: With Slurm how many nodes a job takes.
    type: int
    default: 1
  port:
    description: With several nodes the first one of the ports on which they meet; the job's id decides which.
    type: int
    default: 0
attributes:
  check_mode:
    description: Predicts whether the run would be started, stopped or removed.
extends_documentation_fragment: [lora_forge, lora_forge.run_dir]
"""

EXAMPLES = r"""
- name: Start a run
  training_run:
    run_dir: /workspace/lora-forge/runs/witness-c6746a504464
    command: [/workspace/lora-forge/env/5c1e0a9d3b7f2c64/bin/python, -m, axolotl.cli.train, axolotl.yml]

- name: Stop it with a checkpoint
  training_run:
    run_dir: /workspace/lora-forge/runs/witness-c6746a504464
    state: stopped
"""

RETURN = r"""
backend:
  description: What keeps the supervisor running.
  returned: when O(state=started)
  type: str
  sample: tmux
attach_command:
  description: The command that shows the run on its trainer.
  returned: when O(state=started)
  type: str
  sample: tmux attach -t witness-c6746a504464
message:
  description: What the backend means for a reboot.
  returned: when O(state=started)
  type: str
  sample: after a reboot the same command resumes it
"""

import pathlib

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.lora_forge.errors import report_errors
from ansible.module_utils.lora_forge.trainer import runs

ARGUMENTS = {
    "run_dir": {"type": "path", "required": True},
    "state": {"type": "str", "choices": ["started", "stopped", "absent"], "default": "started"},
    "command": {"type": "list", "elements": "str", "default": []},
    "lane": {"type": "str", "default": "cpu"},
    "lane_dir": {"type": "path"},
    "backend": {"type": "str", "choices": ["auto", "systemd", "tmux", "process", "slurm"], "default": "auto"},
    "environment": {"type": "dict", "default": {}},
    "secrets": {"type": "dict", "default": {}, "no_log": True},
    "stop_timeout": {"type": "int", "default": 120},
    "prepared": {"type": "path"},
    "processes": {"type": "int", "default": 1},
    "answer_command": {"type": "list", "elements": "str", "default": []},
    "facts": {"type": "dict", "default": {}},
    "slurm": {"type": "dict", "default": {}},
    "gate": {"type": "list", "elements": "str", "default": []},
    "nodes": {"type": "int", "default": 1},
    "port": {"type": "int", "default": 0},
}


def main() -> None:
    module = AnsibleModule(ARGUMENTS, supports_check_mode=True, required_if=[("state", "started", ["command"])])
    given = module.params
    run_dir = pathlib.Path(given["run_dir"]).resolve()
    with report_errors(module):
        if given["state"] == "stopped":
            module.exit_json(changed=runs.stop(run_dir, given["stop_timeout"], module.check_mode))
        if given["state"] == "absent":
            module.exit_json(changed=runs.remove(run_dir, given["stop_timeout"], module.check_mode))
        launch = runs.Launch.from_dict(given)
        secrets = {name: str(value) for name, value in given["secrets"].items() if value}
        module.exit_json(**runs.start(run_dir, launch, secrets, given["backend"], module.check_mode))


if __name__ == "__main__":
    main()
