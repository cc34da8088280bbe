"""Documentation of the action of this name: no module, and nothing that runs on a host."""

DOCUMENTATION = r"""
---
module: stop_run
short_description: Stop a run with a checkpoint, and bring that here where checkpoints are fetched
description:
  - Stops the run by M(training_run), and notes that in its record. A run that does not run is left as it is.
attributes:
  check_mode:
    description: Predicts whether the run would be stopped. Nothing is fetched or noted.
extends_documentation_fragment:
  - lora_forge
  - lora_forge.action
  - lora_forge.run
  - lora_forge.root
  - lora_forge.output
  - lora_forge.stop_timeout
  - lora_forge.pull
  - lora_forge.transfer
"""

EXAMPLES = r"""
- name: Stop it
  stop_run:
    run: "{{ run_plan }}"
    root: /workspace/lora-forge
    output: output
    stop_timeout: 120
    pull: false
    transfer: {timeout: 60, options: []}
"""

RETURN = r"""
checkpoint:
  description: The newest whole checkpoint on the trainer, as M(training_run_info) returns it.
  returned: success
  type: dict
  sample: {files: [output/checkpoint-4/adapter_model.safetensors], step: 4}
kept:
  description: Whether nothing of the run would be lost with the trainer.
  returned: success
  type: bool
  sample: true
"""
