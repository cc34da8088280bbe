#!/usr/bin/python
"""Gather what a trainer knows of a run that somebody else has to understand."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: training_run_evidence
short_description: Gather what a trainer knows of a training run that went wrong
description:
  - Everything in one call, for whoever helps. What is not there is left empty and is no failure.
  - Nothing is left out of it yet. M(bundle_run) writes of it what may be sent to somebody else.
options:
  home:
    description: The folder of the environment that the run trains in.
    type: path
    required: true
  lines:
    description: How many last lines of each log.
    type: int
    default: 400
  stall_timeout:
    default: 1800
extends_documentation_fragment:
  - lora_forge
  - lora_forge.reads_only
  - lora_forge.run_dir
  - lora_forge.stall_timeout
"""

EXAMPLES = r"""
- name: Gather what is known of a run
  training_run_evidence:
    run_dir: /workspace/lora-forge/runs/witness-c6746a504464
    home: /workspace/lora-forge/env/trainer-cuda-0123456789abcdef
  register: run_evidence
"""

RETURN = r"""
seen:
  description: What M(training_run_info) returns, with the newest 500 events.
  returned: success
  type: dict
  sample: {state: failed, detail: 'crashed: exit code 1', events: []}
train_log:
  description: The end of train.log.
  returned: success
  type: str
  sample: "ValueError: no data\n"
supervisor_log:
  description: The end of supervisor.log.
  returned: success
  type: str
  sample: "2026-11-23 11:37:39 failed: crashed: exit code 1\n"
axolotl_yml:
  description: What Axolotl was given, at most 64 KiB of it.
  returned: success
  type: str
  sample: "adapter: lora\n"
unit:
  description: What systemd or tmux say of the supervisor; empty where neither keeps it.
  returned: success
  type: str
  sample: "«tmux has-session -t =witness-c6746a504464-1a2b» ended with 1"
gpu:
  description: Driver, GPUs and processes as M(gpu_info) returns them, and in C(error) why they are not known.
  returned: success
  type: dict
  sample: {driver: 580.65.06, gpus: [], processes: [], error: null}
host:
  description: Kernel, distribution, Python, processors, memory and disk, in bytes.
  returned: success
  type: dict
  sample: {kernel: Linux 6.12.0 x86_64, distribution: Debian GNU/Linux 13 (trixie), python: 3.13.5, cpus: 16}
environment:
  description: The name of the environment, and the versions of its packages.
  returned: success
  type: dict
  sample: {name: trainer-cuda-0123456789abcdef, packages: {axolotl: 0.21.0}}
"""

import pathlib

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.lora_forge.errors import report_errors
from ansible.module_utils.lora_forge.trainer import evidence

ARGUMENTS = {
    "run_dir": {"type": "path", "required": True},
    "home": {"type": "path", "required": True},
    "lines": {"type": "int", "default": 400},
    "stall_timeout": {"type": "float", "default": 1800},
}


def main() -> None:
    module = AnsibleModule(ARGUMENTS, supports_check_mode=True)
    given = module.params
    with report_errors(module):
        run_dir, home = pathlib.Path(given["run_dir"]).resolve(), pathlib.Path(given["home"])
        found = evidence.gather(run_dir, home, given["lines"], given["stall_timeout"])
        module.exit_json(changed=False, **found)


if __name__ == "__main__":
    main()
