#!/usr/bin/python
"""Hold recipes against their base models on a trainer, before the weights are there."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: recipe_check
short_description: Hold recipes against their base models, before the weights are there
description:
  - Runs C(preflight.py) of the role run in the environment that trains, once for all runs. Axolotl validates each
    recipe, the model is built from its configuration alone, and PEFT says which adapter it gets. The chat template is
    held against what the data needs.
  - What is expected of the adapter is written to C(expected.json) in the run directory; the adapter is held against it
    in the end.
  - A run that lives, is finished, or has such a file already is not asked about.
options:
  python:
    description: The Python of the environment.
    type: str
    required: true
  program:
    description: C(preflight.py) on the host, with what it imports beside it.
    type: path
    required: true
  home:
    description: What HF_HOME is for the training.
    type: path
    required: true
  runs:
    description: Of each run C(run_id), C(run_dir), C(model), C(revision), C(recipe), C(capabilities) and C(needs).
    type: list
    elements: dict
    required: true
  timeout:
    description: Seconds that it may take.
    type: float
    default: 300
extends_documentation_fragment: [lora_forge]
attributes:
  check_mode:
    description: Does nothing.
"""

EXAMPLES = r"""
- name: Hold a recipe against its base model
  recipe_check:
    python: /workspace/lora-forge/env/trainer-cuda-5c1e0a9d3b7f2c64/bin/python
    program: /workspace/lora-forge/preflight/preflight.py
    home: /workspace/lora-forge/models/hub
    runs:
      - run_id: witness-3f9a2c1b77e0
        run_dir: /workspace/lora-forge/runs/witness-3f9a2c1b77e0
        model: Qwen/Qwen2.5-7B-Instruct
        revision: a09a35458c702b33eeacc393d103063234e8bc28
        recipe: {base_model: Qwen/Qwen2.5-7B-Instruct, adapter: qlora, lora_target_modules: [q_proj]}
        capabilities: {bf16: true, fp8: false, tf32: true, n_gpu: 1, compute_capability: sm_80}
        needs: {later_system: "witness_train.jsonl, line 7"}
"""

RETURN = r"""
answers:
  description: For each run that was asked about C(run_id); C(problems), what Axolotl says against its recipe;
    C(refused), what is said against it with this base model; C(warnings), what may not be meant; C(unknown), why all
    this cannot be told; C(tensors) and C(parameters), how many the adapter will have.
  returned: success
  type: list
  elements: dict
  sample:
    - run_id: witness-3f9a2c1b77e0
      problems: []
      refused: []
      warnings: []
      unknown: ''
      tensors: 392
      parameters: 161480704
left_out:
  description: Why nothing was held against anything, in a sentence; empty where it was.
  returned: success
  type: str
  sample: ''
"""

import pathlib

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.lora_forge.errors import UserError, report_errors
from ansible.module_utils.lora_forge.trainer import preflight

ARGUMENTS = {
    "python": {"type": "str", "required": True},
    "program": {"type": "path", "required": True},
    "home": {"type": "path", "required": True},
    "runs": {"type": "list", "elements": "dict", "required": True},
    "timeout": {"type": "float", "default": 300},
}


def main() -> None:
    module = AnsibleModule(ARGUMENTS, supports_check_mode=True)
    given = module.params
    if module.check_mode:
        module.exit_json(changed=False, answers=[], left_out="")
    with report_errors(module):
        asked = preflight.questions(given["runs"], pathlib.Path(given["home"]))
        if not asked:
            module.exit_json(changed=False, answers=[], left_out="")
        try:
            said = preflight.ask(given["python"], given["program"], asked, given["timeout"])
        except UserError as error:
            module.exit_json(changed=False, answers=[], left_out=str(error))
        answers = [{"run_id": one["run_id"], **answer} for one, answer in zip(asked, said["answers"])]
        module.exit_json(changed=any(answer["tensors"] for answer in answers), answers=answers, left_out="")


if __name__ == "__main__":
    main()
