#!/usr/bin/python
"""Plan training runs."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: training_plan
short_description: Plan training runs from recipes, datasets and trainers
description:
  - Merges and checks the recipe of each agent, checks its datasets, and tells which runs that makes and which of
    them are there already.
  - Runs on the controller and touches no host. Anything wrong is found here, before anything is started.
options:
  agents:
    description:
      - Who is trained; agents, and groups of C(configs/groups.yml), in a list or with commas, or V(all).
      - By default all that the trainers declare, and where one of them takes any, all that have data. A name that is
        given, and empty, is an error.
    type: raw
  by_record:
    description:
      - Find runs to stop or to look at. Besides the run of an agent's recipe these are the others of it that were
        launched and have not ended; of an agent whose recipe or data is broken or gone all that were noted.
      - Of what is known from notes alone there is no recipe, so that it cannot be trained.
    type: bool
    default: false
  collect:
    description:
      - Find runs to watch and to collect. Besides the run of an agent's recipe these are the others of it that were
        launched, and of which an adapter may be there that is not here. They are as they were launched.
    type: bool
    default: false
  hosts:
    description: The hosts that train, by their inventory names.
    type: list
    elements: str
    required: true
  outside:
    description:
      - Those of O(hosts) that a limit leaves out. Nothing is placed on them, and what was launched on them is left
        alone. A gang that holds one of them is left out with it.
    type: list
    elements: str
    default: []
  host_variables:
    description:
      - Variables of these hosts, a mapping of them for each name; those that are read are in C(HOST_VARIABLES) of
        module_utils/lora_forge/planning/fleet.py.
      - In a play the action of this name sets it to what the inventory says.
    type: dict
    default: {}
  host_options:
    description:
      - All variables of these hosts that are named like an option of a role, a mapping of them for each name. Those
        that are no option need no value.
      - In a play the action of this name sets it to what the inventory says. What C(-e) says is for M(check_command).
    type: dict
    default: {}
  groups:
    description: The groups of the inventory, each with its hosts; one of them may be a gang.
    type: dict
    default: {}
  datasets_dir:
    description: Where the datasets of all hosts are, whatever their variables say.
    type: str
  eval_dir:
    description: Where the cases of all hosts are, whatever their variables say.
    type: str
  judge_url:
    description: The endpoint of a judge, which is checked, and not asked; empty for none.
    type: str
    default: ''
  judge_model:
    description: The model that is asked there.
    type: str
    default: ''
  root:
    description: The checkout, with configs and requirements in it.
    type: path
    required: true
  recipe:
    description: Axolotl keys that go on top of every recipe.
    type: dict
    default: {}
  fresh:
    description: Make a new attempt where the newest one is final.
    type: bool
    default: false
  move:
    description:
      - Let go of the trainer that an unfinished run was placed on.
      - Names of trainers, in a list or with commas, let go of those, and place nothing on them.
    type: raw
    default: false
  keep_axolotl:
    description: A version of Axolotl, such as V(0.19), whose adapters count as ready where nothing else has changed.
    type: str
    default: ''
  sweep:
    description:
      - Variants of the recipe, each of which is a run of its own. A list of mappings of Axolotl keys, or a grid, which
        maps each key to a list of values.
      - Which runs belong together is written to C(sweeps/) in O(output).
    type: raw
  verify:
    description: Hash the files of adapters that are there, instead of comparing sizes and times.
    type: bool
    default: false
  validate:
    description:
      - Have Axolotl check the recipes of runs that will be started, where this machine has an environment of the
        trainers' locks. What it takes is noted in C(axolotl_takes.json) in O(output), and not asked again.
      - Rehearsals alone are not checked; they begin with the same check.
    type: bool
    default: false
  axolotl_environment:
    description: An environment with the locks' Axolotl, or its Python, on this machine; by default one is looked for.
    type: str
    default: ''
  evaluate:
    description:
      - Plan evaluations of delivered adapters in the place of trainings. Nothing of recipes and datasets is read.
      - An adapter of which all answers are known is C(ready).
    type: bool
    default: false
  run_id:
    description:
      - With O(evaluate) the run whose adapter is evaluated. By default the promoted one of each agent, and its newest.
    type: str
    default: ''
  against:
    description: With O(evaluate) the run whose adapter it is held against; by default the promoted one.
    type: str
    default: ''
  forks:
    description: How many hosts Ansible works on at once, where it waits for them; without it nothing is warned of.
    type: int
attributes:
  check_mode:
    description: Writes nothing in check mode.
extends_documentation_fragment: [lora_forge, lora_forge.output]
"""

EXAMPLES = r"""
- name: Plan the witness on this machine
  training_plan:
    agents: witness
    hosts: [localhost]
    host_variables:
      localhost: {run_profile: rehearsal, datasets_dir: examples/datasets}
    root: "{{ playbook_dir | dirname }}"
    output: "{{ playbook_dir | dirname }}/output"
"""

RETURN = r"""
version:
  description: The version of lora-forge, with the commit where it is a checkout, as output/plan.json has it, too.
  returned: success
  type: str
  sample: 0.1.0+g0123abc
runs:
  description:
    - The planned runs, as output/plan.json has them. Of one that is ready C(recipe), C(datasets) and C(rehearsed) are
      empty here.
  returned: success
  type: list
  elements: dict
  sample:
    - agent: witness
      datasets:
        - entry: {type: chat_template}
          examples: 45
          needs: []
          path: examples/datasets/witness_train.jsonl
          reading: {}
          sha256: 0c…
          use: train
      estimate: {steps: 12, tokens: 24486}
      rehearsal: true
      run_id: witness-c6746a504464
      state: to train
      trainer: localhost
show:
  description:
    - What people read, which the action of this name shows, also in check mode.
    - The runs as a table of C(columns) and C(rows), C(lines) with the runs of each lane unless one run is alone, with
      the answers to cases and how long they take, and with tools, reasoning and untrained turns of dataset files, and
      C(warnings) of what may not be meant.
  returned: success
  type: dict
  sample:
    columns: [agent, run, trainer, examples, ~tokens, ~steps, ~GPU, state]
    rows: [[witness, witness-c6746a504464, gpu-1, "45", 56 k, "21", 24.4 GiB, to train]]
    lines: ["  gpu-1: mayor, crew, one after the other; about 1.2 M tokens to train on"]
    warnings: ["witness: warmup takes 50 of about 21 steps."]
"""

import os
import pathlib
import time
from typing import Any, Callable

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.lora_forge import rundir
from ansible.module_utils.lora_forge.controller import hooks
from ansible.module_utils.lora_forge.errors import UserError, report_errors
from ansible.module_utils.lora_forge.evaluation import judge
from ansible.module_utils.lora_forge.planning import (
    agent_recipes,
    agents,
    answering,
    evaluations,
    fleet,
    found_runs,
    options,
    plan,
    plan_table,
    validation,
    variants,
)
from ansible.module_utils.lora_forge.planning.questions import unasked_cases
from ansible.module_utils.lora_forge.version import describe_versions, full_version, git_facts

ARGUMENTS = {
    "agents": {"type": "raw"},
    "by_record": {"type": "bool", "default": False},
    "collect": {"type": "bool", "default": False},
    "hosts": {"type": "list", "elements": "str", "required": True},
    "outside": {"type": "list", "elements": "str", "default": []},
    "host_variables": {"type": "dict", "default": {}},
    "host_options": {"type": "dict", "default": {}},
    "groups": {"type": "dict", "default": {}},
    "datasets_dir": {"type": "str"},
    "eval_dir": {"type": "str"},
    "judge_url": {"type": "str", "default": ""},
    "judge_model": {"type": "str", "default": ""},
    "root": {"type": "path", "required": True},
    "output": {"type": "path", "required": True},
    "recipe": {"type": "dict", "default": {}},
    "fresh": {"type": "bool", "default": False},
    "move": {"type": "raw", "default": False},
    "keep_axolotl": {"type": "str", "default": ""},
    "sweep": {"type": "raw"},
    "verify": {"type": "bool", "default": False},
    "validate": {"type": "bool", "default": False},
    "axolotl_environment": {"type": "str", "default": ""},
    "evaluate": {"type": "bool", "default": False},
    "run_id": {"type": "str", "default": ""},
    "against": {"type": "str", "default": ""},
    "forks": {"type": "int"},
}
TELLS = True  # answer() takes what tells people what they wait for
CHECKED_ON_HOSTS = ("run_slurm",)  # slurm_check sees them, with whatever is known by then
HOST_VARIABLES = fleet.HOST_VARIABLES  # the action sets host_variables to these
IS_HOST_OPTION = options.is_checked  # and host_options to those that it takes, with the values of
read_options = options.read_specs  # these alone


def about(given: dict[str, Any]) -> str:
    """Return what the action prints first with ``-v``: what plans here, in which version."""
    return describe_versions(git_facts(pathlib.Path(given["root"])))


def answer(given: dict[str, Any], check_mode: bool, say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Return what the module returns.

    Args:
        given: Its options.
        check_mode: Whether nothing may be written.
        say: Tells people what they wait for.

    Raises:
        UserError: Anything that is wrong with what is asked for.
    """
    checkout = pathlib.Path(given["root"])
    wrong, strange = options.check_trainer_options(checkout, given["host_options"])
    known = agents.Agents(checkout)
    wrong += known.problems
    try:
        judge.check(given["judge_url"].strip(), given["judge_model"].strip(), judge.environment_key())
    except UserError as error:
        wrong.append(str(error))
    if wrong and given["validate"]:  # what starts nothing must not be kept from it by a slip
        raise UserError("\n".join(wrong))
    trainers = fleet.trainers_of(
        given["hosts"], given["host_variables"], given["groups"], given["datasets_dir"], given["eval_dir"]
    )
    root, output = pathlib.Path(given["root"]), pathlib.Path(given["output"])
    if not output.is_absolute():
        raise UserError(f"output_dir is «{output}»; give an absolute path, such as {pathlib.Path.cwd() / output}")
    os.chdir(root)  # relative paths are meant from the checkout, where commands are run
    if given["evaluate"]:
        named = {key: given[key] for key in ("move", "run_id", "against", "verify", "outside")}
        made = evaluations.make(root, output, given["agents"], trainers, known, **named)
    else:
        named = {key: given[key] for key in ("fresh", "move", "verify", "outside")}
        named |= {"agents": known, "keep": given["keep_axolotl"], "say": say}
        if given["by_record"] or given["collect"]:
            named |= {"collect": given["collect"], "live": given["groups"].get("pods_live")}
            made = found_runs.find(root, output, given["agents"], trainers, given["recipe"], **named)
        else:
            grid = [{}] if given["sweep"] is None else variants.expand_sweep(given["sweep"])
            made = plan.make(root, output, given["agents"], trainers, given["recipe"], variants=grid, **named)
    warnings = [*wrong, *strange, *made.warnings]
    if given["validate"] and not given["evaluate"]:
        warnings += unasked_cases(made.runs, root, output)
        environment = given["axolotl_environment"]
        warnings += validation.check(
            made, trainers, root, output, agent_recipes.LOCKS, named=environment, remember=not check_mode, say=say
        )
    if given["forks"]:
        warnings += plan_table.fork_limit_warning(made.runs, given["forks"])
    planned_at = round(time.time(), 3)
    runs = [run.as_dict() | {"planned_at": planned_at} for run in made.runs]
    version = full_version(git_facts(root))
    if not check_mode:
        output.mkdir(parents=True, exist_ok=True)
        rundir.write_json(output / "plan.json", {"version": version, "runs": runs})
        if given["sweep"] is not None:
            variants.write_sweeps(output, made.runs)
    folders = {host: str(known.get("inventory_dir") or "") for host, known in given["host_variables"].items()}
    shown = {
        "columns": plan_table.COLUMNS,
        "rows": [plan_table.table_row(run) for run in made.runs],
        "lines": [
            *(f"  {queue}" for queue in plan_table.describe_queues(made.runs, trainers)),
            *(f"  {line}" for line in answering.describe(made.runs, {one.name: one.gpu_names for one in trainers})),
            *(f"  {line}" for line in made.data),
            *hooks.hook_lines({host: folders.get(host, "") for host in plan_table.busy_hosts(made.runs)}),
        ],
        "warnings": warnings,
    }
    return {"changed": False, "version": version, "runs": [_returned(run) for run in runs], "show": shown}


def _returned(run: dict[str, Any]) -> dict[str, Any]:
    """Leave out of a run that is ready what only a training needs: Ansible's work grows with all that is returned."""
    return run | {"recipe": {}, "datasets": [], "rehearsed": {}} if run["state"] == "ready" else run


def main() -> None:
    module = AnsibleModule(ARGUMENTS, supports_check_mode=True)
    with report_errors(module):
        module.exit_json(**answer(module.params, module.check_mode))


if __name__ == "__main__":
    main()
