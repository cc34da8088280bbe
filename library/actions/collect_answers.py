"""Documentation of the action of this name: no module, and nothing that runs on a host."""

DOCUMENTATION = r"""
---
module: collect_answers
short_description: Bring the answers of a finished evaluation here
description:
  - Fetches answers.jsonl and nothing else by M(transfer), keeps what was asked of it in output/answers, and deletes the
    run's directory on the trainer by M(training_run). What it has cost on a pod is added to its adapter's manifest.
  - Notes in the run's record that it is delivered. Where answers are missing it fails; the same run begins anew then.
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
  - lora_forge.transfer
  - lora_forge.budget
"""

EXAMPLES = r"""
- name: Collect the answers
  collect_answers:
    run: "{{ run_plan }}"
    root: /workspace/lora-forge
    output: output
    transfer: {timeout: 60, options: []}
"""

RETURN = r"""
msg:
  description: What went wrong.
  returned: failure
  type: str
  sample: 3 answers are missing; the same command asks for them again
"""
