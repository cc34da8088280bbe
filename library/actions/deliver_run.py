"""Documentation of the action of this name: no module, and nothing that runs on a host."""

DOCUMENTATION = r"""
---
module: deliver_run
short_description: Deliver the next run of a trainer
description:
  - Takes the run that has ended first, or else one that trains, of those that this host leads and that are not dealt
    with. Follows it to its end by M(watch), and brings its adapter here by M(collect_adapter), or the answers of an
    evaluation by M(collect_answers).
  - Whatever ends first is delivered first. When another run ends meanwhile, be it well or not, that one is dealt with,
    and the next call comes back to the one that trains. On a pod the run that was taken is followed to its end, as its
    costs are watched.
options:
  gpu:
    description: What M(gpu_info) returned of the trainer, for the manifest; empty where it was not asked.
    type: dict
    required: true
  stall_timeout:
    required: true
attributes:
  check_mode:
    description: Delivers nothing.
extends_documentation_fragment:
  - lora_forge
  - lora_forge.action
  - lora_forge.runs
  - lora_forge.root
  - lora_forge.output
  - lora_forge.lock
  - lora_forge.stall_timeout
  - lora_forge.unreachable_timeout
  - lora_forge.stop_timeout
  - lora_forge.pull
  - lora_forge.transfer
  - lora_forge.budget
  - lora_forge.gate
  - lora_forge.judge
  - lora_forge.notify
  - lora_forge.quiet
"""

EXAMPLES = r"""
- name: Watch and collect
  deliver_run:
    runs: "{{ run_plans }}"
    root: /workspace/lora-forge
    output: output
    lock: trainer-cuda
    stall_timeout: 1800
    unreachable_timeout: 3600
    stop_timeout: 120
    pull: false
    transfer: {timeout: 60, options: []}
    gpu: {}
    notify: {output: output, url: '', form: auto, events: [finished, failed], timeout: 10}
    quiet: false
"""

RETURN = r"""
run_id:
  description: Which run it was, beside what M(collect_adapter) returned, or what M(watch) ended with.
  returned: unless there was nothing to deliver
  type: str
  sample: witness-c6746a504464
"""
