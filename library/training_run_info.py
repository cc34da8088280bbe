#!/usr/bin/python
"""Tell what is true of a training run."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: training_run_info
short_description: Tell what is true of a training run on its trainer
description:
  - Concludes the state of a run from its supervisor's word, the process table and its metrics.
  - With O(wait) it blocks on the trainer until something changed, so that watching costs few round trips.
options:
  since:
    description: The RV(token) of an earlier answer. Only events after it are returned.
  stall_timeout:
    default: 1800
  heartbeat_timeout:
    description: Seconds of silence after which a supervisor counts as stalled.
    type: float
    default: 60
  others:
    description: Run directories of other runs of this trainer, of which only the progress is wanted.
    type: list
    elements: path
    default: []
  awaited:
    description:
      - Run directories of other runs of this trainer whose end ends O(wait), too. It is read from their own files; no
        queue is asked for it.
    type: list
    elements: path
    default: []
extends_documentation_fragment:
  - lora_forge
  - lora_forge.reads_only
  - lora_forge.run_dir
  - lora_forge.news
  - lora_forge.stall_timeout
"""

EXAMPLES = r"""
- name: Ask for a run
  training_run_info:
    run_dir: /workspace/lora-forge/runs/witness-c6746a504464
  register: run_seen
"""

RETURN = r"""
state:
  description: One of absent, queued, running, stalled, stopped, failed, finished.
  returned: success
  type: str
  sample: running
detail:
  description: Why, in a sentence; empty where there is nothing to say.
  returned: success
  type: str
  sample: ''
alive:
  description: Whether a process of the run is there.
  returned: success
  type: bool
  sample: true
progress:
  description: Steps, losses and what the length limit did to the data.
  returned: success
  type: dict
  sample: {eval_loss: 7.51, loss: 7.52, planned: 12, step: 6}
eta_seconds:
  description: Seconds until the last step at the pace so far.
  returned: success
  type: float
  sample: 15.2
status:
  description: The supervisor's own word.
  returned: success
  type: dict
  sample: {starts: 1, state: running}
events:
  description: Events of the training after O(since).
  returned: success
  type: list
  elements: dict
  sample: [{event: log, loss: 7.52, planned: 12, step: 6, time: 1760000000.0}]
checkpoint:
  description: The newest whole checkpoint; its step is 0 where there is none. Its files are paths below O(run_dir).
  returned: success
  type: dict
  sample: {files: [output/checkpoint-6/adapter_model.safetensors, output/checkpoint-6/complete.json], step: 6}
facts:
  description: Of run.json whose run it is, and how it was started.
  returned: success
  type: dict
  sample: {agent: witness, backend: tmux, hosts: [gpu-1], run_id: witness-c6746a504464}
silent_for:
  description: Seconds since the supervisor's last word; null where it never said one.
  returned: success
  type: float
  sample: 2.5
nodes:
  description: Where its job runs, as Slurm writes a list of nodes.
  returned: while a job of Slurm's runs
  type: str
  sample: c[1-2]
others:
  description: How far each of O(others) has come, by the folder's name.
  returned: success
  type: dict
  sample: {mayor-9a01c2d3e4f5: {loss: 7.6, planned: 12, step: 4}}
over:
  description: Which of O(awaited) have come to an end, by the folder's name.
  returned: success
  type: list
  elements: str
  sample: [mayor-9a01c2d3e4f5]
token:
  description: What to pass as O(since) next.
  returned: success
  type: str
  sample: '2210:8c1f00aa12bd'
log_tail:
  description: The end of train.log.
  returned: when the run failed
  type: str
  sample: 'ValueError: …'
"""

import pathlib

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.lora_forge.errors import report_errors
from ansible.module_utils.lora_forge.trainer import runs

ARGUMENTS = {
    "run_dir": {"type": "path", "required": True},
    "since": {"type": "str", "default": ""},
    "wait": {"type": "float", "default": 0},
    "stall_timeout": {"type": "float", "default": 1800},
    "heartbeat_timeout": {"type": "float", "default": 60},
    "others": {"type": "list", "elements": "path", "default": []},
    "awaited": {"type": "list", "elements": "path", "default": []},
}


def main() -> None:
    module = AnsibleModule(ARGUMENTS, supports_check_mode=True)
    given = module.params
    limits = {name: given[name] for name in ("stall_timeout", "heartbeat_timeout")}
    with report_errors(module):
        run_dir = pathlib.Path(given["run_dir"]).resolve()
        awaited = [pathlib.Path(path) for path in given["awaited"]]
        observation = runs.wait_for_news(run_dir, given["since"], given["wait"], awaited, **limits)
        others = {path.name: runs.progress_of(path).as_dict() for path in map(pathlib.Path, given["others"])}
        over = [path.name for path in awaited if runs.is_over(path)]
        module.exit_json(changed=False, others=others, over=over, **observation.as_dict())


if __name__ == "__main__":
    main()
