"""Documentation of the action of this name: no module, and nothing that runs on a host."""

DOCUMENTATION = r"""
---
module: await_leash
short_description: See that a pod holds a leash that can end it
description:
  - Asks M(pod_leash) on the pod until its leash is fresh and has reached RunPod with the pod's own key.
  - A pod whose leash does not run, lacks a variable, does not take RunPod's certificate, or does not reach it, fails.
    One on which something was launched already does not, and is warned of; M(watch) ends it with a checkpoint in time.
  - What the pod says is its own word. It finds images and machines that cannot end a pod, and no host that lies.
options:
  budget:
    description: What the pod costs and may cost, as M(runpod_pod) returns it.
    type: dict
    required: true
  timeout:
    description: Seconds to wait for what time may mend, such as a network that comes up late.
    type: float
    required: true
attributes:
  check_mode:
    description: Asks nothing.
extends_documentation_fragment:
  - lora_forge
  - lora_forge.action
  - lora_forge.unreachable_timeout
"""

EXAMPLES = r"""
- name: See that something ends the pod
  await_leash:
    budget: "{{ pod_made.budget }}"
    timeout: 150
    unreachable_timeout: 180
"""

RETURN = r"""
unleashed:
  description: V(image) where another pod of the same image would be no better, V(machine) otherwise.
  returned: when nothing but a controller would end the pod, and nothing was launched on it
  type: str
  sample: image
state:
  description: V(unreachable) where the connection stays lost.
  returned: when the connection is lost
  type: str
  sample: unreachable
"""
