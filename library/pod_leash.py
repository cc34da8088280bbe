#!/usr/bin/python
"""Renew and read the leash of a rented pod."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: pod_leash
short_description: Renew and read the leash of a rented pod, on that pod
description:
  - A leash is the program that ends a rented pod at its deadline, whether a controller still watches it or not.
  - Returns what it says of itself, and gives it another deadline where one is wanted.
options:
  pod:
    description: The pod's id at RunPod.
    type: str
    required: true
  deadline:
    description:
      - When the pod shall end itself, in seconds since the epoch; not in the past by the pod's clock.
      - Without it the leash is only read.
    type: float
  wait:
    description:
      - Seconds to wait for a fresh beat of a leash that RunPod has shown its pod.
      - It returns at once where waiting would mend nothing, as in an image without CA certificates.
    type: float
    default: 0
attributes:
  check_mode:
    description: Tells whether the deadline would be another one.
extends_documentation_fragment: [lora_forge, lora_forge.root]
"""

EXAMPLES = r"""
- name: Read the leash
  pod_leash:
    root: /workspace/lora-forge
    pod: 7h9k2m4n6p
  register: leash

- name: Give the pod two more hours
  pod_leash:
    root: /workspace/lora-forge
    pod: 7h9k2m4n6p
    deadline: "{{ leash.leash.deadline + 7200 }}"
"""

RETURN = r"""
leash:
  description:
    - What the leash says of itself, by its last beat. A new O(deadline) shows in it some seconds later.
    - Where there never was a beat, there is nothing but RV(leash.alive) and RV(leash.missing).
  returned: success
  type: dict
  sample: {alive: true, beat_age: 12.5, deadline: 1795458720.0, state: waiting}
  contains:
    alive:
      description: Whether the beat is younger than 150 seconds.
      returned: success
      type: bool
      sample: true
    answer:
      description:
        - What RunPod answered, in words, when the leash looked its own pod up at its start; empty before that.
      returned: when there was a beat
      type: str
      sample: 200 OK
    beat:
      description: When it said this, in seconds since the epoch.
      returned: when there was a beat
      type: float
      sample: 1795450800.125
    beat_age:
      description: How many seconds ago that was.
      returned: when there was a beat
      type: float
      sample: 12.5
    deadline:
      description: When it ends the pod, in seconds since the epoch.
      returned: when there was a beat
      type: float
      sample: 1795458720.0
    lacks:
      description: Which variables RunPod did not set, in words; empty where none is missing.
      returned: when there was a beat
      type: str
      sample: ''
    missing:
      description: The programs that the host lacks of those that start a leash.
      returned: when there never was a beat
      type: list
      elements: str
      sample: [gzip]
    pod:
      description: The pod that it ends.
      returned: when there was a beat
      type: str
      sample: 7h9k2m4n6p
    renewals:
      description: How often it was given another deadline.
      returned: when there was a beat
      type: int
      sample: 1
    state:
      description:
        - One of waiting, stopping (it asks the training for a checkpoint), ending, or refused (RunPod does not end the
          pod).
      returned: when there was a beat
      type: str
      sample: waiting
    status:
      description: The HTTP status of RV(leash.answer); V(0) without an answer.
      returned: when there was a beat
      type: int
      sample: 200
    word:
      description: The same as RV(leash.state) in a sentence.
      returned: when there was a beat
      type: str
      sample: this pod ends itself at 2026-11-23 18:32:00 UTC unless it is renewed
"""

import pathlib

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.lora_forge.errors import report_errors
from ansible.module_utils.lora_forge.pods import leash

ARGUMENTS = {
    "root": {"type": "path", "required": True},
    "pod": {"type": "str", "required": True},
    "deadline": {"type": "float"},
    "wait": {"type": "float", "default": 0},
}


def main() -> None:
    module = AnsibleModule(ARGUMENTS, supports_check_mode=True)
    given = module.params
    with report_errors(module):
        root = pathlib.Path(given["root"]).resolve()
        changed = False
        if given["deadline"] is not None:
            changed = leash.renew(root, given["pod"], given["deadline"], check=module.check_mode)
        module.exit_json(changed=changed, leash=leash.await_status(root, given["pod"], given["wait"]))


if __name__ == "__main__":
    main()
