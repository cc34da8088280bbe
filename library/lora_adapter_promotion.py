#!/usr/bin/python
"""Promote a delivered adapter by hand."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: lora_adapter_promotion
short_description: Let latest point to a delivered adapter, or tell which ones there are
description:
  - Runs on the controller. Moves C(latest) to a delivered adapter whose files are whole (their hashes are compared),
    whatever its eval loss is, and notes it in history.jsonl.
  - A rehearsal never displaces a real adapter.
options:
  adapters:
    description: The folder of all adapters.
    type: path
    required: true
  agent:
    description: Whose adapters.
    type: str
    required: true
  run_id:
    description: The adapter to promote. Empty changes nothing, and only tells.
    type: str
    default: ''
  max_regression:
    description:
      - By which share its eval loss may be above the promoted one's; 0.02 is 2 %. The gate decides then, as after a
        training, also on a run that it has decided on before.
      - By default it is moved by hand, whatever the gate says.
    type: float
attributes:
  check_mode:
    description: Predicts whether latest would move.
    support: full
  diff_mode:
    description: Shows nothing.
    support: none
author:
  - lora-forge
"""

EXAMPLES = r"""
- name: Go back to an earlier adapter
  lora_adapter_promotion:
    adapters: output/adapters
    agent: witness
    run_id: witness-c6746a504464
"""

RETURN = r"""
promoted:
  description: The run latest points to, in check mode the one it would point to; empty when it leads nowhere.
  returned: success
  type: str
  sample: witness-c6746a504464
adapters:
  description: >-
    The delivered adapters as they are, the newest first. C(comparable) says whether the eval loss can be held against
    the promoted one's, C(flaw) what is wrong with the files.
  returned: success
  type: list
  elements: dict
  sample:
    - comparable: ''
      eval_loss: 7.43
      finished_at: 1760000000.0
      flaw:
      promoted: true
      rehearsal: true
      run_id: witness-c6746a504464
      steps: {planned: 12, reached: 12}
word:
  description: What was done, or how to do it.
  returned: success
  type: str
  sample: latest points to witness-c6746a504464 already
"""

import pathlib

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.lora_forge.adapters import promotion
from ansible.module_utils.lora_forge.errors import report_errors

ARGUMENTS = {
    "adapters": {"type": "path", "required": True},
    "agent": {"type": "str", "required": True},
    "run_id": {"type": "str", "default": ""},
    "max_regression": {"type": "float"},
}


def main() -> None:
    module = AnsibleModule(ARGUMENTS, supports_check_mode=True)
    agent, run_id = module.params["agent"], module.params["run_id"]
    with report_errors(module):
        home = promotion.home_of(pathlib.Path(module.params["adapters"]), agent)
        gate = module.params["max_regression"]
        if gate is None:
            changed = bool(run_id) and promotion.promote_by_hand(home, run_id, module.check_mode)
        else:
            changed = bool(run_id) and promotion.promote(home, run_id, gate, asked=True, check=module.check_mode)
        rows = promotion.overview(home)
        promoted = (gate is None and run_id) or next((row["run_id"] for row in rows if row["promoted"]), "")
        if changed:
            word = f"latest {'would point' if module.check_mode else 'points'} to {run_id}"
        elif run_id and run_id != promoted:
            word = promotion.message(home, run_id)
        elif run_id:
            word = f"latest points to {run_id} already"
        elif rows:
            word = f"to promote one: {promotion.BY_HAND.format(agent=agent, run_id='…')}"
        else:
            word = f"{agent} has no adapter in {home} yet; to train one: ansible-playbook train.yml -e role={agent}"
        module.exit_json(changed=changed, promoted=promoted, adapters=rows, word=word)


if __name__ == "__main__":
    main()
