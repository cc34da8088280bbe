#!/usr/bin/python
"""Verify a LoRA adapter."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: lora_adapter_info
short_description: Verify the LoRA adapter of a run and list its files
description:
  - Holds the adapter against the run's expected.json - names and shapes of all tensors, as the base model itself and
    the recipe give them - that file and adapter_config.json against the recipe - rank, scale, base model and its commit
    - and the values against reason - all finite, no matrix all zero but B matrices that no gradient reached. Reads over
    a memory map, so large adapters take seconds.
  - Needs numpy and safetensors in the Python it runs with; the trainer's environment has both.
options:
  recipe:
    description: The recipe, with C(lora_r), C(lora_rank_pattern), C(lora_alpha), C(peft_use_rslora), C(peft_use_dora),
      C(base_model) and C(model_revision).
    type: dict
    required: true
extends_documentation_fragment: [lora_forge, lora_forge.reads_only, lora_forge.run_dir]
"""

EXAMPLES = r"""
- name: Verify an adapter where it was trained
  lora_adapter_info:
    run_dir: /workspace/lora-forge/runs/witness-c6746a504464
    recipe: "{{ run_plan.recipe }}"
  vars:
    ansible_python_interpreter: "{{ trainer_python }}"
"""

RETURN = r"""
problems:
  description: What speaks against it, in sentences; empty when it is verified.
  returned: success
  type: list
  elements: str
  sample: []
modules:
  description: Modules that have LoRA matrices.
  returned: success
  type: int
  sample: 14
rank:
  description: The rank.
  returned: success
  type: int
  sample: 64
parameters:
  description: Values of the adapter.
  returned: success
  type: int
  sample: 213504
untrained:
  description: Matrices that are zero, as no gradient reached them.
  returned: success
  type: int
  sample: 0
files:
  description: What is delivered, with sizes and SHA-256.
  returned: success
  type: list
  elements: dict
  sample: [{bytes: 855000, name: adapter_model.safetensors, path: output/adapter_model.safetensors, sha256: 0c…}]
versions:
  description: Versions of the packages that trained it.
  returned: success
  type: dict
  sample: {axolotl: 0.19.0, torch: 2.13.0+cpu}
"""

import importlib.metadata
import pathlib
import platform

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.lora_forge import rundir
from ansible.module_utils.lora_forge.adapters import store
from ansible.module_utils.lora_forge.errors import report_errors

ARGUMENTS = {"run_dir": {"type": "path", "required": True}, "recipe": {"type": "dict", "required": True}}
PACKAGES = ("axolotl", "torch", "transformers", "peft", "bitsandbytes", "accelerate")


def main() -> None:
    module = AnsibleModule(ARGUMENTS, supports_check_mode=True)
    run_dir = pathlib.Path(module.params["run_dir"])
    with report_errors(module):
        facts = store.verify(run_dir / "output", module.params["recipe"], run_dir / rundir.EXPECTED)
        facts["problems"] += store.template_problems(run_dir)
        versions = {"python": platform.python_version()}
        for name in PACKAGES:
            try:
                versions[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                continue
        files = [] if facts["problems"] else store.list_files(run_dir)
        module.exit_json(changed=False, files=files, versions=versions, **facts)


if __name__ == "__main__":
    main()
