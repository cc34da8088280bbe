#!/usr/bin/python
"""Tell what W&B says of runs, or what its client recorded."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: wandb_run_info
short_description: Tell what W&B says of runs, or what its client recorded
description:
  - Runs on the controller. Asks W&B about any number of runs at once, through the public interface of its own client.
  - With O(record) it reads what the client recorded on disk instead, and needs neither key nor network.
  - It fails when anything that was asked could not be answered, with RV(kind), and returns what is known all the same.
options:
  runs:
    description:
      - Ids or display names of runs; of several with one display name the newest is meant.
      - Without any it only tells whose key it is.
    type: list
    elements: str
    default: []
  entity:
    description: Whose project it is; by default the key's default entity.
  project:
    description: The runs' project.
    type: str
    default: lora-forge
  record:
    description:
      - A record of the client, C(run-…) or C(offline-run-…), or a folder that holds some, up to four folders deep.
      - What was cut off is read as far as it goes.
    type: path
  timeout:
    default: 20
  history:
    description: How many last points of each run's history to return; looked for within its last 1000 steps.
    type: int
    default: 0
extends_documentation_fragment: [lora_forge, lora_forge.reads_only, lora_forge.wandb]
"""

EXAMPLES = r"""
- name: Ask W&B about a run
  wandb_run_info:
    runs: [witness-c6746a504464]
  delegate_to: localhost
  register: wandb_runs

- name: Read what was recorded on the trainer
  wandb_run_info:
    record: output/adapters/witness/witness-c6746a504464/wandb
    history: 10
  delegate_to: localhost
"""

RETURN = r"""
entity:
  description: Whose runs were asked for; the key's default entity where none was given.
  returned: always, but for O(record)
  type: str
  sample: my-team
base_url:
  description: The address that was asked.
  returned: always, but for O(record)
  type: str
  sample: https://api.wandb.ai
runs:
  description:
    - One for each of O(runs), in their order, or for each record, oldest first.
    - C(asked) is the id or name that was given, or the record's folder. C(state) is W&B's; of a record finished,
      failed, or unfinished where it has no end. C(heartbeat_at) is W&B's last sign of life, or when a record was
      written to last; C(heartbeat_age) is in seconds, by the server's clock.
    - C(summary), C(history) and C(config) hold plain values, and no keys of the client's own but C(_step),
      C(_timestamp) and C(_runtime). C(system) holds the newest figures of the machine.
    - C(synced), of records only, tells whether C(wandb sync) left its mark. C(error) is null, or kind and msg.
  returned: always
  type: list
  elements: dict
  sample:
    - asked: witness-c6746a504464
      config: {learning_rate: 0.0002}
      error: null
      heartbeat_age: 12.0
      heartbeat_at: '2026-01-15T10:20:30Z'
      history: []
      id: witness-c6746a504464
      name: witness-c6746a504464
      path: my-team/lora-forge/witness-c6746a504464
      state: running
      step: 42
      summary: {_step: 42, train/loss: 0.81}
      system: {gpu.0.gpu: 97}
      tags: [witness]
      url: https://wandb.ai/my-team/lora-forge/runs/witness-c6746a504464
kind:
  description: One of no_key, bad_key, no_project, run_not_found, rate_limit, timeout, server_down, answer.
  returned: failure
  type: str
  sample: run_not_found
"""

import pathlib

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.lora_forge.errors import report_errors
from ansible.module_utils.lora_forge.results import wandb_query, wandb_records

ARGUMENTS = {
    "runs": {"type": "list", "elements": "str", "default": []},
    "entity": {"type": "str", "default": ""},
    "project": {"type": "str", "default": "lora-forge"},
    "record": {"type": "path"},
    "base_url": {"type": "str", "default": ""},
    "api_key": {"type": "str", "default": "", "no_log": True},
    "timeout": {"type": "int", "default": 20},
    "history": {"type": "int", "default": 0},
}


def main() -> None:
    module = AnsibleModule(ARGUMENTS, supports_check_mode=True, mutually_exclusive=[("runs", "record")])
    given = module.params
    with report_errors(module):
        if given["record"]:
            answer = wandb_records.read_records(pathlib.Path(given["record"]), given["timeout"], given["history"])
        else:
            names = ("entity", "project", "base_url", "timeout", "history")
            answer = wandb_query.ask_server(
                given["runs"], key=given["api_key"], **{name: given[name] for name in names}
            )
        error = answer.pop("error")
        if error:
            module.fail_json(**error, **answer)
        module.exit_json(changed=False, **answer)


if __name__ == "__main__":
    main()
