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
  failures:
    description: What went wrong, by run id, or by trainer where no run of it was begun.
    type: dict
    default: {}
  detached:
    description: Whether the trainings were meant to go on unwatched, so that nothing lacks yet that was launched.
    type: bool
    default: false
  launched:
    description: The run ids that were launched, or are under way, by trainer; asked for where O(detached) is set.
    type: dict
    default: {}
  delivered:
    description: The run ids that were delivered now. What was there before says so by its state.
    type: list
    elements: str
    default: []
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
columns:
  description: The headings of a sweep's leader board; empty without a sweep.
  returned: success
  type: list
  elements: str
  sample: [place, variant]
rows:
  description: Its rows, the best one first.
  returned: success
  type: list
  elements: list
  sample: [[1, lora_r 16]]
best:
  description:
    - Of each agent whose recipe was varied the run with the lowest eval loss that can be compared.
    - As long as one of the variants is not there, it is not known.
  returned: success
  type: list
  elements: dict
  sample: [{agent: witness, run_id: witness-c6746a504464}]
lacking:
  description: Run ids that were wanted and are not verified.
  returned: success
  type: list
  elements: str
  sample: []
"""

import pathlib
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.lora_forge.adapters import promotion, store
from ansible.module_utils.lora_forge.errors import report_errors
from ansible.module_utils.lora_forge.results import leaderboard, summary

ARGUMENTS = {
    "adapters": {"type": "path", "required": True},
    "runs": {"type": "list", "elements": "dict", "required": True},
    "failures": {"type": "dict", "default": {}},
    "detached": {"type": "bool", "default": False},
    "launched": {"type": "dict", "default": {}},
    "delivered": {"type": "list", "elements": "str", "default": []},
}


def answer(given: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """What the module returns.

    Args:
        given: Its options.
        check_mode: Whether nothing may be written.
    """
    adapters = pathlib.Path(given["adapters"])
    lines: list[str] = []
    lacking: list[str] = []
    whole: set[str] = set()
    for run in given["runs"]:
        home = adapters / run["agent"]
        there = (
            run["state"] == "ready" or run["run_id"] in given["delivered"]
        )  # a manifest alone may be a damaged one's
        manifest = store.rundir.read_json(home / run["run_id"] / store.MANIFEST) if there else {}
        if manifest:
            whole.add(run["run_id"])
        promoted = promotion.points_to(home / promotion.LATEST) == run["run_id"]
        if manifest and run.get("variant"):
            continue  # the leader board tells of it
        if manifest:
            lines += summary.ready_lines(run, manifest, home, promoted, promotion.message(home, run["run_id"]))
        elif check_mode:
            lines.append(f"{run['name']} would be trained: {run['run_id']} on {run['trainer']}")
        elif given["detached"] and summary.is_under_way(run, given["launched"], given["failures"]):
            lines.append(f"{run['name']} trains on {run['trainer']}; the same command without detach watches it")
        else:
            lines += summary.not_ready_lines(run, given["failures"])
            lacking.append(run["run_id"])
    lines += summary.tally_lines(given["runs"], lacking)
    boards = leaderboard.leaderboards(adapters.parent, given["runs"])
    return {
        "changed": False,
        "lines": lines,
        "lacking": lacking,
        "columns": leaderboard.COLUMNS if boards else [],
        "rows": [leaderboard.table_row(row) for board in boards.values() for row in board],
        "best": [
            {"agent": agent, "run_id": board[0]["run_id"]}
            for agent, board in boards.items()
            if board[0]["place"] and whole.issuperset(row["run_id"] for row in board)
        ],
    }


def main() -> None:
    module = AnsibleModule(ARGUMENTS, supports_check_mode=True)
    with report_errors(module):
        module.exit_json(**answer(module.params, module.check_mode))


if __name__ == "__main__":
    main()
