#!/usr/bin/python
"""Read a log of a training run."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: training_log
short_description: Read a log of a training run on its trainer
description:
  - Returns the end of a log, or what follows an earlier answer, at most 256 KiB at once.
  - With O(wait) it blocks on the trainer until there is text, so that following costs few round trips.
  - Of a progress bar it returns the last picture, and no terminal codes.
options:
  log:
    description: V(train) is what Axolotl says, V(supervisor) what the supervisor says.
    type: str
    choices: [train, supervisor]
    default: train
  offset:
    description:
      - The RV(offset) of an earlier answer, to read on from there. A log that is shorter by now is read from its start.
      - V(-1) is the end of the log, which is returned without waiting.
    type: int
    default: -1
  lines:
    description: How many lines of the end, without O(offset).
    type: int
    default: 50
  wait:
    description:
      - Seconds to wait for text, or for the end of the run.
      - A line that has no end yet is returned when they are over.
    type: float
    default: 0
extends_documentation_fragment: [lora_forge, lora_forge.reads_only, lora_forge.run_dir]
"""

EXAMPLES = r"""
- name: Read the end of a log
  training_log:
    run_dir: /workspace/lora-forge/runs/witness-c6746a504464
  register: log_read

- name: Read on
  training_log:
    run_dir: /workspace/lora-forge/runs/witness-c6746a504464
    offset: "{{ log_read.offset }}"
    wait: 30
"""

RETURN = r"""
text:
  description: Whole lines; empty where there is nothing new.
  returned: success
  type: str
  sample: "2026-11-23 11:37:39 finished\n"
offset:
  description: What to pass as O(offset) next.
  returned: success
  type: int
  sample: 28838
state:
  description:
    - One of absent, queued, running, stalled, stopped, failed, finished.
    - It is absent for a run that was removed since an earlier answer; without O(offset) that is an error.
  returned: success
  type: str
  sample: finished
more:
  description: Whether there is more text than one answer takes.
  returned: success
  type: bool
  sample: false
"""

import pathlib

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.lora_forge.errors import report_errors
from ansible.module_utils.lora_forge.trainer import logs

ARGUMENTS = {
    "run_dir": {"type": "path", "required": True},
    "log": {"type": "str", "choices": ["train", "supervisor"], "default": "train"},
    "offset": {"type": "int", "default": -1},
    "lines": {"type": "int", "default": 50},
    "wait": {"type": "float", "default": 0},
}


def main() -> None:
    module = AnsibleModule(ARGUMENTS, supports_check_mode=True)
    given = module.params
    with report_errors(module):
        run_dir = pathlib.Path(given["run_dir"]).resolve()
        answer = logs.read_log(run_dir, given["log"], given["offset"], given["lines"], given["wait"])
        module.exit_json(changed=False, **answer)


if __name__ == "__main__":
    main()
