"""Documentation of the action of this name: no module, and nothing that runs on a host."""

DOCUMENTATION = r"""
---
module: collect_adapter
short_description: Verify a finished run's adapter where it was trained, bring it here, deliver it
description:
  - Verifies by M(lora_adapter_info) on the trainer, fetches by M(transfer), and verifies again and delivers by
    M(lora_adapter), which may let C(latest) point to it.
  - Notes the outcome in the run's record, and tells a webhook.
options:
  observed:
    description: How the run ended, as M(training_run_info) returns it.
    type: dict
    required: true
  gpu:
    description: What M(gpu_info) returned of the trainer, for the manifest; empty where it was not asked.
    type: dict
    required: true
attributes:
  check_mode:
    description: Not meant for it; M(deliver_run), which calls it, does nothing in check mode.
    support: none
extends_documentation_fragment:
  - lora_forge
  - lora_forge.action
  - lora_forge.run
  - lora_forge.root
  - lora_forge.output
  - lora_forge.lock
  - lora_forge.transfer
  - lora_forge.budget
  - lora_forge.gate
  - lora_forge.judge
  - lora_forge.notify
"""

EXAMPLES = r"""
- name: Collect the adapter
  collect_adapter:
    run: "{{ run_plan }}"
    observed: "{{ run_observed }}"
    root: /workspace/lora-forge
    output: output
    lock: trainer-cuda
    gpu: {}
    transfer: {timeout: 60, options: []}
    notify: {output: output, url: '', form: auto, events: [finished], timeout: 10}
"""

RETURN = r"""
path:
  description: The delivered folder, beside what else M(lora_adapter) returns.
  returned: success
  type: str
  sample: output/adapters/witness/witness-c6746a504464
problems:
  description: What is wrong with the adapter where it was trained, in sentences.
  returned: always
  type: list
  elements: str
  sample: []
step:
  description: How far it came, one of verify, fetch, deliver.
  returned: always
  type: str
  sample: deliver
"""
