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
    - What the leash says of itself, by its last beat (in seconds since the epoch). A new O(deadline) shows in it some
      seconds later.
    - RV(leash.state) is waiting, stopping (it asks the training for a checkpoint), ending, or refused (RunPod does not
      end the pod), and RV(leash.word) says so in a sentence.
    - RV(leash.alive) is whether the beat is younger than 150 seconds, and RV(leash.beat_age) its age. Where there
      never was one, there is nothing else but RV(leash.missing), the programs that the host lacks of those that start
      it.
    - At its start it looks its own pod up at RunPod. RV(leash.answer) is what came back, in words, and empty before
      that; RV(leash.status) is its HTTP status, V(0) without an answer. RV(leash.lacks) says which variables RunPod did
      not set.
  returned: success
  type: dict
  sample:
    alive: true
    answer: 200 OK
    beat: 1795450800.125
    beat_age: 12.5
    deadline: 1795458720.0
    lacks: ''
    pod: 7h9k2m4n6p
    renewals: 1
    state: waiting
    status: 200
    word: this pod ends itself at 2026-11-23 18:32:00 UTC unless it is renewed
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
