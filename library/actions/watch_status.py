"""Documentation of the action of this name: no module, and nothing that runs on a host."""

DOCUMENTATION = r"""
---
module: watch_status
short_description: Keep what is true of all runs on the screen while anything runs
description:
  - Asks all trainers of the play again and again by M(trainer_info), each in a process of its own, and shows the
    verdicts of M(training_status). Losing this process harms nothing.
  - The answers lie in a folder that those processes share, among this command's temporary files, which goes when the
    command does. The process of the first trainer of O(snapshots) concludes.
options:
  snapshots:
    description: What M(trainer_info) returned of each trainer before, by its name.
    type: dict
    required: true
  busy:
    description: The trainers on which something ran; without any it is over.
    type: list
    elements: str
    required: true
  every:
    description: Seconds between two looks.
    type: float
    required: true
  look:
    description: The options of M(trainer_info).
    type: dict
    required: true
  conclude:
    description: The options of M(training_status), without the snapshots.
    type: dict
    required: true
attributes:
  check_mode:
    description: Shows the same. M(training_status) writes nothing then.
extends_documentation_fragment: [lora_forge, lora_forge.action]
"""

EXAMPLES = r"""
- name: Look again and again, until nothing runs
  watch_status:
    snapshots: "{{ run_snapshots }}"
    busy: "{{ run_status.busy }}"
    every: 5
    look: {root: /workspace/lora-forge}
    conclude: {output: output}
"""

RETURN = r"""{}"""
