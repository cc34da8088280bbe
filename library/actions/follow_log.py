"""Documentation of the action of this name: no module, and nothing that runs on a host."""

DOCUMENTATION = r"""
---
module: follow_log
short_description: Show a log of a run, and follow it until the run is over
description:
  - Asks M(training_log). Losing this process, or the connection, harms nothing.
options:
  log:
    description: V(train) is what Axolotl says, V(supervisor) what the supervisor says.
    type: str
    choices: [train, supervisor]
    required: true
  lines:
    description: How many lines of the end.
    type: int
    required: true
  follow:
    description: Whether to read on until the run is over.
    type: bool
    required: true
  agent:
    description: Whose log it is.
    type: str
    required: true
  prefix:
    description: Whether O(agent) stands before each line.
    type: bool
    required: true
extends_documentation_fragment:
  - lora_forge
  - lora_forge.action
  - lora_forge.reads_only
  - lora_forge.run_dir
  - lora_forge.unreachable_timeout
"""

EXAMPLES = r"""
- name: Show the log
  follow_log:
    run_dir: /workspace/lora-forge/runs/witness-c6746a504464
    log: train
    lines: 50
    follow: false
    agent: witness
    prefix: false
    unreachable_timeout: 3600
"""

RETURN = r"""
state:
  description: The run's, as M(training_log) returns it.
  returned: success
  type: str
  sample: finished
"""
