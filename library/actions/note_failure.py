"""Documentation of the action of this name: no module, and nothing that runs on a host."""

DOCUMENTATION = r"""
---
module: note_failure
short_description: Note what went wrong with runs, and tell a webhook
description:
  - Writes into the records of the runs on the controller, and asks nothing of the trainer.
  - A run that is delivered, or noted as failed on this host already, is left alone.
options:
  failure:
    description: What the failed task returned. Read are C(msg), C(state), C(breach) and C(refused), and C(failures),
      which has these of each run that failed, by its C(run_id); the others did well then.
    type: dict
    required: true
  host:
    description: Where it failed; by default on the host of the task.
    type: str
  whole_trainer:
    description: Whether all that the host had to do is given up. What it launched goes on then.
    type: bool
    default: false
attributes:
  check_mode:
    description: Writes nothing, and tells nobody.
extends_documentation_fragment:
  - lora_forge
  - lora_forge.action
  - lora_forge.runs
  - lora_forge.notify
  - lora_forge.quiet
"""

EXAMPLES = r"""
- name: Note it, and tell
  note_failure:
    runs: "{{ run_plans }}"
    failure: "{{ ansible_failed_result }}"
    quiet: false
    notify: {output: /home/me/lora-forge/output, url: '', form: auto, events: [failed], timeout: 10}
"""

RETURN = r"""
ends:
  description: Whether the host can do nothing more for its other runs, as it is lost or would cost too much.
  returned: always
  type: bool
  sample: false
stop:
  description: The hosts on which a run of a gang has to be stopped, as it would wait there in vain.
  returned: always
  type: list
  elements: dict
  sample: [{host: gpu-2, run_id: witness-c6746a504464}]
msg:
  description: What was noted.
  returned: always
  type: str
  sample: no connection for 1 h
"""
