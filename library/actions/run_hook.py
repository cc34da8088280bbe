"""Documentation of the action of this name: no module, and nothing that runs on a host."""

DOCUMENTATION = r"""
---
module: run_hook
short_description: Run the user's own task file for a host
description:
  - The file is C(hooks/<name>.yml) in the folder of the inventory that holds the host. Without it nothing happens.
  - Its tasks run in an ansible-playbook of their own, so that none of their variables or results reaches other tasks.
  - If it fails before provisioning, the task fails. After the release that is a warning, as the adapter is here then.
  - After the release it is left out while a run of lora-forge still trains on the host, or where the host does not
    answer.
options:
  name:
    description: Which file.
    type: str
    choices: [before_provision, after_release]
    required: true
  timeout:
    description: Seconds that it may take.
    type: float
    required: true
attributes:
  check_mode:
    description: Runs the file in check mode, too.
extends_documentation_fragment: [lora_forge, lora_forge.action, lora_forge.root, lora_forge.runs]
"""

EXAMPLES = r"""
- name: Run what frees the GPU
  run_hook:
    name: before_provision
    root: /workspace/lora-forge
    runs: "{{ run_plans }}"
    timeout: 600
"""

RETURN = r"""
msg:
  description: Why nothing was done, or what went wrong.
  returned: when there is no such file, or failure
  type: str
  sample: there is no hooks/after_release.yml beside the inventory
"""
