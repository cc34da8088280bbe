"""Documentation of the action of this name: no module, and nothing that runs on a host."""

DOCUMENTATION = r"""
---
module: preflight
short_description: Hold the recipes of a trainer's runs against their base models, before the weights are there
description:
  - Asks M(recipe_check), once for all runs. A rehearsal is not asked about, as its model is made at its launch.
  - Where none of the runs can begin it fails with the sentences against them. Where some can, it tells the sentences
    against the others, and returns them for M(start_runs).
  - Where the trainer cannot tell, it says why, and the training will.
options:
  gpus:
    description: The names of the trainer's GPUs.
    type: list
    elements: str
    default: []
attributes:
  check_mode:
    description: Does nothing.
extends_documentation_fragment:
  - lora_forge
  - lora_forge.action
  - lora_forge.runs
  - lora_forge.root
  - lora_forge.lock
  - lora_forge.unreachable_timeout
"""

EXAMPLES = r"""
- name: Hold the recipes against the base model
  preflight:
    runs: "{{ run_plans }}"
    root: /workspace/lora-forge
    lock: trainer-cuda
    gpus: [NVIDIA H200]
    unreachable_timeout: 3600
"""

RETURN = r"""
refusals:
  description: Of each run that cannot begin, by its id, why, in sentences.
  returned: always
  type: dict
  sample:
    witness-3f9a2c1b77e0: "the recipe of witness does not go with its base model Acme/Tiny: PEFT refuses …"
configuration:
  description: Whether it failed because of the recipes, so that no other machine would do better.
  returned: failure
  type: bool
  sample: true
"""
