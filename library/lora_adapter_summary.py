#!/usr/bin/python
"""Sum up which adapters are ready."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: lora_adapter_summary
short_description: Sum up for people which of the planned adapters are ready
description:
  - Reads manifests on the controller and words what there is, what it took, and what to do next.
options:
  adapters:
    description: The folder of all adapters.
    type: path
    required: true
  runs:
    description: The runs, as planned.
    type: list
    elements: dict
    required: true
  detached:
    description: Whether the trainings were meant to go on unwatched, so that nothing lacks yet.
    type: bool
    default: false
attributes:
  check_mode:
    description: Reads only. In check mode nothing counts as lacking.
    support: full
  diff_mode:
    description: Shows nothing.
    support: none
author:
  - lora-forge
"""

EXAMPLES = r"""
- name: Sum up
  lora_adapter_summary:
    adapters: output/adapters
    runs: "{{ run_plan_made.runs }}"
"""

RETURN = r"""
lines:
  description: What to print.
  returned: success
  type: list
  elements: str
  sample: ["witness is ready   output/adapters/witness/latest → witness-c6746a504464"]
lacking:
  description: Run ids that were wanted and are not verified.
  returned: success
  type: list
  elements: str
  sample: []
"""

import pathlib

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.lora_forge import adapter, promotion, summary
from ansible.module_utils.lora_forge.errors import reported

ARGUMENTS = {
    "adapters": {"type": "path", "required": True},
    "runs": {"type": "list", "elements": "dict", "required": True},
    "detached": {"type": "bool", "default": False},
}


def main() -> None:
    module = AnsibleModule(ARGUMENTS, supports_check_mode=True)
    adapters = pathlib.Path(module.params["adapters"])
    lines: list[str] = []
    lacking: list[str] = []
    with reported(module):
        for run in module.params["runs"]:
            home = adapters / run["agent"]
            manifest = adapter.rundir.read_json(home / run["run_id"] / adapter.MANIFEST)
            promoted = summary.points_to(home / "latest") == run["run_id"]
            if manifest:
                lines += summary.ready(run, manifest, home, promoted, promotion.word(home, run["run_id"]))
            elif module.check_mode:
                lines.append(f"{run['agent']} would be trained: {run['run_id']} on {run['trainer']}")
            elif module.params["detached"]:
                lines.append(f"{run['agent']} trains on {run['trainer']}; the same command without detach watches it")
            else:
                lines.append(f"{run['agent']} is not ready: {run['run_id']} is not verified")
                lacking.append(run["run_id"])
        module.exit_json(changed=False, lines=lines, lacking=lacking)


if __name__ == "__main__":
    main()
