#!/usr/bin/python
"""Note on the controller where a run was placed."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: run_placement
short_description: Note on the controller where a run was placed
description:
  - Writes C(<output>/runs/<run_id>.json) before a launch, and how the run ended afterwards, so that running the same
    command again finds it.
options:
  output:
    description: Where adapters, placements and the plan are kept.
    type: path
    required: true
  run_id:
    description: The run.
    type: str
    required: true
  trainer:
    description: Its trainer's inventory name.
    type: str
    required: true
  lane:
    description: The number of its lane there, from 0; by default what is noted already.
    type: int
  state:
    description: What is known of it.
    type: str
    choices: [launched, finished, failed, stopped]
    required: true
  detail:
    description: Why, where its trainer does not know it, such as what is wrong with its adapter.
    type: str
    default: ''
attributes:
  check_mode:
    description: Writes nothing.
    support: full
  diff_mode:
    description: Shows nothing.
    support: none
author:
  - lora-forge
"""

EXAMPLES = r"""
- name: Note where the run is
  run_placement:
    output: output
    run_id: witness-c6746a504464
    trainer: localhost
    state: launched
"""

RETURN = r"""
path:
  description: The file.
  returned: success
  type: str
  sample: output/runs/witness-c6746a504464.json
"""

import pathlib
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.lora_forge import rundir
from ansible.module_utils.lora_forge.errors import report_errors

ARGUMENTS = {
    "output": {"type": "path", "required": True},
    "run_id": {"type": "str", "required": True},
    "trainer": {"type": "str", "required": True},
    "state": {"type": "str", "choices": ["launched", "finished", "failed", "stopped"], "required": True},
    "lane": {"type": "int"},
    "detail": {"type": "str", "default": ""},
}


def answer(given: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """What the module returns.

    Args:
        given: Its options.
        check_mode: Whether nothing may be written.
    """
    path = pathlib.Path(given["output"]) / "runs" / f"{given['run_id']}.json"
    before = rundir.read_json(path)
    after = {
        "run_id": given["run_id"],
        "trainer": given["trainer"],
        "lane": before.get("lane", 0) if given["lane"] is None else given["lane"],
        "state": given["state"],
        "final": given["state"] in rundir.FINAL_STATES,
        "detail": given["detail"],
    }
    if before.get("detail") and (before.get("state"), given["state"]) == ("failed", "finished"):
        after = {key: before.get(key) for key in after}  # it ran to its end, and what came of it is no good
    changed = {key: before.get(key, 0 if key == "lane" else "") for key in after} != after
    if changed and not check_mode:
        path.parent.mkdir(parents=True, exist_ok=True)
        rundir.write_json(path, after | {"noted_at": round(time.time(), 3)})
    return {"changed": changed, "path": str(path)}


def main() -> None:
    module = AnsibleModule(ARGUMENTS, supports_check_mode=True)
    with report_errors(module):
        module.exit_json(**answer(module.params, module.check_mode))


if __name__ == "__main__":
    main()
