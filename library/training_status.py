#!/usr/bin/python
"""Conclude what is true of all runs."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: training_status
short_description: Conclude what is true of all runs, from every source at once
description:
  - Runs on the controller. Takes what the trainers said, reads placements, manifests and adapters, and asks W&B about
    runs that are logged there and not delivered yet, with the environment's E(WANDB_API_KEY).
  - Writes C(status.json) into O(output), with all runs, whoever's are meant. That is a note of what was seen, and
    no change.
options:
  snapshots:
    description: What trainer_info returned of each trainer, by its name.
    type: dict
    required: true
  wandb:
    description: Whether W&B is asked.
    type: bool
    default: true
  outside:
    description: Trainers that a limit leaves out. What is there stands in C(status.json), and is not shown.
    type: list
    elements: str
    default: []
  busy:
    description: The trainers on which something ran when they were last asked, so RV(busy) of an earlier call.
    type: list
    elements: str
    default: []
  pods:
    description: Where the claims of rented pods lie; they tell what a run has cost.
    type: path
  display:
    description:
      - Whether its action shows the table - C(table), C(screen) on a terminal in the place of the one before it, or
        C(none).
    type: str
    choices: [table, screen, none]
    default: table
attributes:
  check_mode:
    description: Concludes the same and writes nothing.
extends_documentation_fragment: [lora_forge, lora_forge.output, lora_forge.agents, lora_forge.checkout]
"""

EXAMPLES = r"""
- name: Conclude
  training_status:
    output: output
    checkout: .
    snapshots:
      gpu-1: "{{ trainer_seen }}"
"""

RETURN = r"""
runs:
  description: For each run what is known of it, and its verdict.
  returned: success
  type: list
  elements: dict
  sample: [{agent: witness, contradictions: [], run_id: witness-c6746a504464, state: running, verdict: running}]
show:
  description: What its action prints, a table and lines under it, as columns, rows, lines and screen.
  returned: when O(display) is not V(none)
  type: dict
  sample: {columns: [agent, run], rows: [[witness, witness-c6746a504464]], lines: [], screen: false}
costs:
  description: USD by run, of those on pods that are not delivered, be they launched yet or not.
  returned: success
  type: dict
  sample: {witness-c6746a504464: 1.25}
busy:
  description:
    - The trainers on which a run is queued, running or stalled. What ran on one that does not answer is taken to go on,
      and so is what a cluster has whose Slurm does not.
  returned: success
  type: list
  elements: str
  sample: [gpu-1]
"""

import pathlib
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.lora_forge import rundir
from ansible.module_utils.lora_forge.errors import report_errors
from ansible.module_utils.lora_forge.planning.agents import Agents, everybody, kept_agents
from ansible.module_utils.lora_forge.pods import claims, spending
from ansible.module_utils.lora_forge.pods.claims import Claims
from ansible.module_utils.lora_forge.results import leaderboard, status

ARGUMENTS = {
    "output": {"type": "path", "required": True},
    "snapshots": {"type": "dict", "required": True},
    "wandb": {"type": "bool", "default": True},
    "agents": {"type": "raw"},
    "checkout": {"type": "path", "required": True},
    "outside": {"type": "list", "elements": "str", "default": []},
    "busy": {"type": "list", "elements": "str", "default": []},
    "pods": {"type": "path"},
    "display": {"type": "str", "choices": ["table", "screen", "none"], "default": "table"},
}


def answer(given: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Return what the module returns.

    Args:
        given: Its options.
        check_mode: Whether nothing may be written.

    Raises:
        UserError: A name is not known.
    """
    output, snapshots = pathlib.Path(given["output"]), given["snapshots"]
    folder = pathlib.Path(given["pods"]) if given["pods"] else None
    ordered = Claims(folder).list_all() if folder else []
    costs = claims.cost_by_run(ordered, output / "adapters", time.time())
    answers, notes = status.ask_wandb(output, snapshots) if given["wandb"] else ({}, [])
    runs = status.collect_status(output, snapshots, answers, costs)
    known = Agents(pathlib.Path(given["checkout"]))
    kept = kept_agents(output).union(run["agent"] for run in runs)
    wanted = [] if everybody(given["agents"]) else known.select(given["agents"], kept)
    meant = [run for run in runs if (not wanted or run["agent"] in wanted) and run["trainer"] not in given["outside"]]
    silent = {trainer: snapshot["silent"] for trainer, snapshot in snapshots.items() if "silent" in snapshot}
    if not check_mode:
        output.mkdir(parents=True, exist_ok=True)
        hosts = [
            {
                "name": name,
                "answers": name not in silent,
                "word": silent.get(name, ""),
                "gpus": snapshot.get("gpus", []),
            }
            for name, snapshot in snapshots.items()
        ]
        head = {"schema_version": rundir.SCHEMA_VERSION, "made_at": round(time.time(), 3)}
        rundir.write_json(output / "status.json", head | {"runs": runs, "hosts": hosts})
    returned = {
        "changed": False,
        "runs": meant,
        "costs": costs,
        "busy": status.busy(meant, silent, given["busy"]),
    }
    if given["display"] == "none":
        return returned
    rows = status.table_rows(meant, silent)
    lines = status.status_lines(meant, silent, notes) + status.gone_lines(meant, known.names)
    lines += leaderboard.summary_lines(output, known.names, wanted)
    lines += [f"    {line}" for line in spending.summary_lines(Claims(folder), time.time())] if folder else []
    lines = lines or ([] if rows else ["  no run is known" + (" within --limit" if given["outside"] else "")])
    screen = given["display"] == "screen"
    return returned | {"show": {"columns": status.COLUMNS, "rows": rows, "lines": lines, "screen": screen}}


def main() -> None:
    module = AnsibleModule(ARGUMENTS, supports_check_mode=True)
    with report_errors(module):
        module.exit_json(**answer(module.params, module.check_mode))


if __name__ == "__main__":
    main()
