"""Documentation of the action of this name: no module, and nothing that runs on a host."""

DOCUMENTATION = r"""
---
module: tell_late
short_description: Tell a webhook what nobody told it of a delivered run
description:
  - The command that delivered the run died before it told, or nobody had to decide on the run then.
  - An event that was settled since the run's launch is told by no further command. Of several commands at once one
    tells it.
options:
  events:
    description: What happened, in a sentence for each event.
    type: dict
    required: true
  progress:
    description: How far the run came.
    type: dict
    required: true
attributes:
  check_mode:
    description: Tells nobody.
extends_documentation_fragment:
  - lora_forge
  - lora_forge.action
  - lora_forge.run
  - lora_forge.notify
"""

EXAMPLES = r"""
- name: Tell it
  tell_late:
    run: "{{ run_untold.run }}"
    events: {finished: latest points to it}
    progress: {step: 12, planned: 12, loss: 1.5, eval_loss: 1.6}
    notify: {output: /home/me/lora-forge/output, url: '', form: auto, events: [finished], timeout: 10}
"""

RETURN = r"""{}"""
