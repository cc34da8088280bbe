#!/usr/bin/python
"""Have a RunPod pod, or be rid of it."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: runpod_pod
short_description: Have a RunPod pod that answers SSH, or be rid of it
description:
  - Runs on the controller. A pod is claimed on disk under a unique name before it is ordered, so that one whose order
    got no answer, or whose controller died, is found again and never ordered twice.
  - With O(state=present) it goes on for O(wait) seconds and tells how far it came in RV(phase). Call it again until
    that is V(ready); the action plugin of the same name does, and shows the progress.
  - A pod that does not boot in time is released, and another one is ordered. When none can be had, nothing is left
    rented.
  - Every pod holds a leash, a program that ends it at a deadline, whatever becomes of the controller.
options:
  host:
    description: The pod's inventory name.
    type: str
    required: true
  state:
    description: V(stopped) keeps the disk, which goes on costing money; a stopped pod is never started again by this.
    type: str
    choices: [present, stopped, absent]
    default: present
  runs:
    description: The runs it is for, as planned; their size decides how long the leash is.
    type: list
    elements: dict
    default: []
  find_only:
    description: Order and release nothing; a pod that is not there, or not well, is an error.
    type: bool
    default: false
  output:
    description: The controller's folder in which the runs' placements and adapters are, by which a pod in use is told.
    type: str
    default: ''
  max_usd:
    description: The most that all pods of these runs may cost together; 0 for no such cap.
    type: float
    default: 0
  max_usd_per_day:
    description:
      - The most that all pods of this owner may cost together in a calendar day (UTC); 0 for no such cap.
      - What pods that are there may still come to by their deadlines counts, too. An order that does not fit fails, and
        a leash is no longer than what is left.
    type: float
    default: 0
  max_usd_per_month:
    description: The same for a calendar month (UTC).
    type: float
    default: 0
  max_hours:
    description: The longest that the pod may live.
    type: float
    default: 24
  image:
    description: A container image with sshd and Python 3, which takes C(PUBLIC_KEY) from the environment.
    type: str
    default: ''
  start_command:
    description: What the image starts by itself.
    type: str
    default: /start.sh
  disk:
    description: GB of the container's own disk, lost with the container.
    type: int
    default: 40
  volume:
    description: GB of a volume on the pod's machine; 0 for none.
    type: int
    default: 0
  network_volume:
    description: The id of a network volume, which outlives the pod.
    type: str
    default: ''
  mount:
    description: Where the volume is mounted.
    type: str
    default: /workspace
  env:
    description: More variables for the container; no secrets, as everybody with access to the account can read them.
    type: dict
    default: {}
  root:
    description: The trainer's root on the pod, where its leash looks for runs; needed with O(state=present).
    type: str
  leash:
    description: The leash program. Needed for O(state=present).
    type: path
  ssh_key:
    description: A private key whose C(.pub) lies beside it; empty for one made for this checkout.
    type: str
    default: ''
  order_timeout:
    description: Seconds to wait for capacity.
    type: int
    default: 3600
  boot_timeout:
    description: Seconds from the order until SSH answers.
    type: int
    default: 900
  attempts:
    description: How many pods may be ordered until one boots.
    type: int
    default: 3
  wait:
    description: Seconds to go on for, until there is something to tell.
    type: float
    default: 20
  since:
    description: The RV(message) that was told already.
    type: str
    default: ''
  claim:
    description: The name of the claim that an earlier call told of. When another command has closed it, nothing more is
      ordered.
    type: str
    default: ''
  controller:
    description: The process of the command that wants the pod, as the action plugin notes it. When that is gone,
      nothing is ordered.
    type: dict
    default: {}
  reason:
    description: Why it is released, for its claim.
    type: str
    default: no longer wanted
  bad:
    description: Whether it is released because its machine is no good; for an hour its GPU type is asked for last, and
      the next orders wait a little.
    type: bool
    default: false
  unused:
    description:
      - With O(state=absent), only where no live run claims the pod at that moment. Whoever lists pods, and releases one
        after the other, may come to one that was taken into use meanwhile.
    type: bool
    default: false
  id:
    description: Only this pod of the host, for O(state=absent) and O(state=stopped).
    type: str
    default: ''
attributes:
  check_mode:
    description: Orders and releases nothing; says what it would order, at what price, and for how long at most.
  diff_mode:
    description: Shows status, GPU and price before and after.
    support: full
extends_documentation_fragment: [lora_forge, lora_forge.runpod, lora_forge.runpod_claims, lora_forge.runpod_offers]
"""

EXAMPLES = r"""
- name: Have a pod
  runpod_pod:
    host: pod-1
    state_dir: .pods
    gpus: [NVIDIA L40S, NVIDIA A100-SXM4-80GB]
    max_usd_per_hour: 2
    image: runpod/pytorch@sha256:0a360022e8de4375af99430f84e8b38951acc397252163a37ceac7204d01be35
    root: /workspace/lora-forge
    leash: roles/pod/files/leash.py
  delegate_to: localhost

- name: Be rid of it
  runpod_pod:
    host: pod-1
    state: absent
    state_dir: .pods
  delegate_to: localhost
"""

RETURN = r"""
phase:
  description: One of waiting (for capacity), ordering, booting, ready; or stopped, absent, or present where it is kept.
  returned: when it is not check mode
  type: str
  sample: ready
message:
  description: How far it is, what it costs, what became of it, or what would be ordered, in a sentence.
  returned: success
  type: str
  sample: "NVIDIA L40S, SECURE, 0.86 USD/h: ordered"
notes:
  description: What was given up or taken over on the way, in sentences.
  returned: when O(state=present)
  type: list
  elements: str
  sample: []
pod:
  description:
    - What RunPod says of the pod, as far as it is used here, without its environment. C(ssh_problem) says why it will
      have no address for SSH; it is empty where nothing speaks against one.
  returned: when it is there
  type: dict
  sample: {id: 7h9k2m4n6p, status: RUNNING, cost: 0.86, ssh_problem: ''}
claim:
  description: This checkout's claim to it.
  returned: when there is one
  type: dict
  sample: {name: lora-forge-3f9a2c1b-pod-1-0c1d2e, usd_per_hour: 0.86}
connection:
  description: Variables with which Ansible reaches it.
  returned: when it is ready
  type: dict
  sample: {ansible_host: 195.26.233.3, ansible_port: 34446}
budget:
  description: Its price, caps and deadline, for watching.
  returned: when it is ready
  type: dict
  sample: {deadline: 1764000000, max_hours: 24, max_usd: 0, pod: 7h9k2m4n6p, since: 1763990000, usd_per_hour: 0.86}
retention_notice:
  description: What it goes on costing, until when, and the two ways on.
  returned: when it is ready
  type: str
  sample: It costs 0.86 USD/h until its leash ends it at 2026-11-23 18:32. …
usd:
  description: What it has cost, by its price and the time since its order.
  returned: when that is known
  type: float
  sample: 0.43
"""

from ansible.module_utils.basic import AnsibleModule, env_fallback
from ansible.module_utils.lora_forge.errors import report_errors
from ansible.module_utils.lora_forge.pods import desired_state, runpod

ARGUMENTS = {
    "host": {"type": "str", "required": True},
    "state": {"type": "str", "choices": ["present", "stopped", "absent"], "default": "present"},
    "state_dir": {"type": "path", "required": True},
    "runs": {"type": "list", "elements": "dict", "default": []},
    "find_only": {"type": "bool", "default": False},
    "output": {"type": "str", "default": ""},
    "gpus": {"type": "list", "elements": "str", "default": []},
    "gpu_count": {"type": "int", "default": 1},
    "clouds": {"type": "list", "elements": "str", "choices": ["SECURE", "COMMUNITY"], "default": ["SECURE"]},
    "max_usd_per_hour": {"type": "float", "default": 0},
    "max_usd": {"type": "float", "default": 0},
    "max_usd_per_day": {"type": "float", "default": 0},
    "max_usd_per_month": {"type": "float", "default": 0},
    "max_hours": {"type": "float", "default": 24},
    "min_cuda": {"type": "str", "default": "13.0"},
    "data_centers": {"type": "list", "elements": "str", "default": []},
    "image": {"type": "str", "default": ""},
    "start_command": {"type": "str", "default": "/start.sh"},
    "disk": {"type": "int", "default": 40},
    "volume": {"type": "int", "default": 0},
    "network_volume": {"type": "str", "default": ""},
    "mount": {"type": "str", "default": "/workspace"},
    "env": {"type": "dict", "default": {}},
    "root": {"type": "str"},
    "leash": {"type": "path"},
    "ssh_key": {"type": "str", "default": "", "no_log": False},  # a path
    "order_timeout": {"type": "int", "default": 3600},
    "boot_timeout": {"type": "int", "default": 900},
    "attempts": {"type": "int", "default": 3},
    "wait": {"type": "float", "default": 20},
    "since": {"type": "str", "default": ""},
    "claim": {"type": "str", "default": ""},
    "controller": {"type": "dict", "default": {}},
    "reason": {"type": "str", "default": "no longer wanted"},
    "bad": {"type": "bool", "default": False},
    "unused": {"type": "bool", "default": False},
    "id": {"type": "str", "default": ""},
    "owner": {"type": "str", "default": ""},
    "api_key": {"type": "str", "no_log": True, "fallback": (env_fallback, ["RUNPOD_API_KEY"])},
    "api_url": {"type": "str", "fallback": (env_fallback, ["RUNPOD_API_URL"])},
}


def main() -> None:
    module = AnsibleModule(ARGUMENTS, supports_check_mode=True)
    given = module.params
    with report_errors(module):
        api = runpod.RunPod(given["api_key"] or "", given["api_url"] or "")
        module.exit_json(**desired_state.bring_about(given, module.check_mode, api))


if __name__ == "__main__":
    main()
