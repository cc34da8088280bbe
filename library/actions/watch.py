"""Documentation of the action of this name: no module, and nothing that runs on a host."""

DOCUMENTATION = r"""
---
module: watch
short_description: Watch a run to its end, and show its progress
description:
  - Asks M(training_run_info) again and again, at least two seconds apart. Losing this process, or the connection, harms
    nothing.
  - On a pod it stops a run that would come to cost too much, and renews the pod's leash within the caps, where it saw
    steps go by since the last renewal, and the rest fits into the caps at their pace. How long a host says that it
    needs adds to what was spent, and takes nothing from it.
  - Every end but V(finished) is a failure.
  - When it comes back to a run that it left for another one, it goes on telling from there.
  - Every five minutes it asks the pod's leash, too. Where that has not been able to end the pod for a quarter of an
    hour, the run is stopped, as for its costs.
options:
  stall_timeout:
    required: true
  others:
    description: Planned runs that the trainer has besides; how far they are is drawn, too.
    type: list
    elements: dict
    default: []
  awaited:
    description:
      - The run_ids of those O(others) whose end ends this watch, too; RV(first) says which it was.
      - A run that was left for another one is not awaited any more, so that a host that calls runs over which go on is
        heard once of each.
    type: list
    elements: str
    default: []
attributes:
  check_mode:
    description: Watches nothing.
extends_documentation_fragment:
  - lora_forge
  - lora_forge.action
  - lora_forge.run
  - lora_forge.root
  - lora_forge.output
  - lora_forge.stall_timeout
  - lora_forge.unreachable_timeout
  - lora_forge.stop_timeout
  - lora_forge.pull
  - lora_forge.transfer
  - lora_forge.budget
  - lora_forge.notify
  - lora_forge.quiet
"""

EXAMPLES = r"""
- name: Show the progress
  watch:
    run: "{{ run_plan }}"
    root: /workspace/lora-forge
    output: output
    stall_timeout: 1800
    unreachable_timeout: 3600
    stop_timeout: 120
    pull: false
    transfer: {timeout: 60, options: []}
    notify: {output: output, url: '', form: auto, events: [failed], timeout: 10}
    quiet: false
"""

RETURN = r"""
state:
  description: How it ended, as M(training_run_info) concludes it, beside what else that returns. V(unreachable) where
    the connection stays lost.
  returned: unless RV(first) is
  type: str
  sample: finished
first:
  description: Which of O(awaited) has ended while this run goes on.
  returned: when one has
  type: str
  sample: mayor-9a01c2d3e4f5
breach:
  description: Which cap it would have broken, or what is wrong with the leash, in words.
  returned: when it was stopped for that
  type: str
  sample: it would come to cost 21.40 USD, and pod_max_usd is 20
kept:
  description: Whether nothing of the run would be lost with the trainer.
  returned: when it was stopped for its costs
  type: bool
  sample: true
spent:
  description: Whether the cap is reached already, so that its pod has to be released although it could not be stopped.
  returned: when it could not be stopped
  type: bool
  sample: false
"""
