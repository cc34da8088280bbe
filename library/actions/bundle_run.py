"""Documentation of the action of this name: no module, and nothing that runs on a host."""

DOCUMENTATION = r"""
---
module: bundle_run
short_description: Write one archive of a run, for whoever helps
description:
  - Asks M(training_run_evidence) once, and adds what the controller knows. Where the trainer does not answer, the
    archive has the latter, and says what is missing.
  - Keys are left out, and what may be of the data. See the page on troubleshooting.
options:
  lock:
    description: The name of the lock of the trainer's environment.
    type: str
    required: true
  wandb:
    description: Whether runs are logged, as their recipe says it.
    type: str
    choices: [online, offline, disabled]
    required: true
  pods:
    description: The folder of claims.
    type: path
    required: true
  url:
    description: The address of the webhook, a secret that must not be in the archive.
    type: str
    default: ""
  out_of_reach:
    description: Why the trainer is not asked; empty where it is.
    type: str
    default: ""
attributes:
  check_mode:
    description: Asks, and writes nothing.
extends_documentation_fragment:
  - lora_forge
  - lora_forge.action
  - lora_forge.run
  - lora_forge.root
  - lora_forge.output
  - lora_forge.stall_timeout
"""

EXAMPLES = r"""
- name: Write an archive
  bundle_run:
    run: "{{ run_plan }}"
    root: /workspace/lora-forge
    output: /home/me/lora-forge/output
    lock: trainer-cuda
    wandb: offline
    pods: /home/me/lora-forge/.pods
    stall_timeout: 1800
"""

RETURN = r"""
path:
  description: Where the archive is, with the mode 0600.
  returned: success
  type: str
  sample: /home/me/lora-forge/output/bundles/witness-c6746a504464.tar.gz
files:
  description: The names of what is in it.
  returned: success
  type: list
  elements: str
  sample: [README.txt, versions.txt, train.log]
missing:
  description: What is not in it, and why.
  returned: success
  type: list
  elements: str
  sample: []
"""
