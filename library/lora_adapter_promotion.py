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
extends_documentation_fragment: [lora_forge, lora_forge.adapters, lora_forge.checkout]
"""

EXAMPLES = r"""
- name: Go back to an earlier adapter
  lora_adapter_promotion:
    adapters: output/adapters
    checkout: .
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
    the promoted one's, C(defect) what is wrong with the files.
  returned: success
  type: list
  elements: dict
  sample:
    - comparable: ''
      defect:
      eval_loss: 7.43
      finished_at: 1760000000.0
      promoted: true
      rehearsal: true
      run_id: witness-c6746a504464
      steps: {planned: 12, reached: 12}
message:
  description: What was done, or how to do it.
  returned: success
  type: str
  sample: latest points to witness-c6746a504464 already
show:
  description: What its action prints, as columns, rows and lines; with O(run_id) no rows.
  returned: success
  type: dict
  sample: {columns: [run, eval loss], rows: [], lines: ["  latest points to witness-c6746a504464 already"]}
"""

import pathlib
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.lora_forge.adapters import promotion
from ansible.module_utils.lora_forge.errors import UserError, report_errors
from ansible.module_utils.lora_forge.planning.agents import (
    Agents,
    gone_sentence,
    kept_agents,
    listed,
    one_of,
    split_names,
)

ARGUMENTS = {
    "adapters": {"type": "path", "required": True},
    "agent": {"type": "str", "required": True},
    "checkout": {"type": "path", "required": True},
    "run_id": {"type": "str", "default": ""},
    "max_regression": {"type": "float"},
}


def answer(given: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Return what the module returns.

    Args:
        given: Its options.
        check_mode: Whether nothing may be written.

    Raises:
        UserError: There is no such agent, or its adapter cannot be promoted.
    """
    run_id, gate, adapters = given["run_id"], given["max_regression"], pathlib.Path(given["adapters"])
    known = Agents(pathlib.Path(given["checkout"]))
    if not split_names(given["agent"]):
        raise UserError(f"say whose adapter to promote: -e role=witness. Agents: {listed(known.names)}")
    agent = one_of(known.select(given["agent"], kept_agents(adapters.parent)), given["agent"])
    home = adapters / agent
    if gate is None:
        moved = bool(run_id) and promotion.promote_by_hand(home, run_id, check_mode)
    else:
        moved = bool(run_id) and promotion.promote(
            home, run_id, promotion.Gate(max_regression=gate), asked=True, check=check_mode
        )
    rows = promotion.overview(home)
    if run_id:
        message = promotion.outcome(home, run_id, moved, check_mode)
    elif rows:
        message = f"to promote one: {promotion.BY_HAND.format(agent=agent, run_id='…')}"
    elif agent not in known.names:
        message = f"{agent} has no adapter in {home}, and {gone_sentence(agent)}"
    else:
        message = f"{agent} has no adapter in {home} yet; to train one: ansible-playbook train.yml -e role={agent}"
    table = [] if run_id else [promotion.table_row(row) for row in rows]
    return {
        "changed": moved,
        "promoted": (gate is None and run_id) or next((row["run_id"] for row in rows if row["promoted"]), ""),
        "adapters": rows,
        "message": message,
        "show": {"columns": promotion.COLUMNS, "rows": table, "lines": [f"  {message}"]},
    }


def main() -> None:
    module = AnsibleModule(ARGUMENTS, supports_check_mode=True)
    with report_errors(module):
        module.exit_json(**answer(module.params, module.check_mode))


if __name__ == "__main__":
    main()
