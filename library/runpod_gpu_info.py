#!/usr/bin/python
"""List prices and stock of RunPod's GPUs."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: runpod_gpu_info
short_description: List prices and stock of RunPod's GPUs
description:
  - Reads RunPod's catalogue. With O(gpus) it tells in which order these would be tried within the price cap.
options:
  gpus:
    description: GPU types by RunPod's id or name; empty for all.
  max_usd_per_hour:
    description: The most that a pod may cost an hour; 0 for any price.
  memory_gib:
    description: The memory that a GPU should have; one with less is offered only where no other one will do.
    type: float
    default: 0
extends_documentation_fragment: [lora_forge, lora_forge.reads_only, lora_forge.runpod, lora_forge.runpod_offers]
"""

EXAMPLES = r"""
- name: What do these cost now, and are there any?
  runpod_gpu_info:
    gpus: [NVIDIA L40S, NVIDIA A100-SXM4-80GB]
    max_usd_per_hour: 2
  delegate_to: localhost
"""

RETURN = r"""
offers:
  description:
    - What may be ordered, in the order in which it would be tried; prices are those of a whole pod.
    - C(warning) says why one may not do; it is empty where nothing speaks against it.
  returned: success
  type: list
  elements: dict
  sample:
    - {cloud: SECURE, gpu: NVIDIA L40S, memory_gb: 48, stock: HIGH, usd_per_hour: 0.86, warning: ''}
"""

import dataclasses

from ansible.module_utils.basic import AnsibleModule, env_fallback
from ansible.module_utils.lora_forge.errors import report_errors
from ansible.module_utils.lora_forge.pods import costs, runpod, spec

ARGUMENTS = {
    "gpus": {"type": "list", "elements": "str", "default": []},
    "gpu_count": {"type": "int", "default": 1},
    "clouds": {"type": "list", "elements": "str", "choices": ["SECURE", "COMMUNITY"], "default": ["SECURE"]},
    "max_usd_per_hour": {"type": "float", "default": 0},
    "memory_gib": {"type": "float", "default": 0},
    "min_cuda": {"type": "str", "default": "13.0"},
    "data_centers": {"type": "list", "elements": "str", "default": []},
    "api_key": {"type": "str", "no_log": True, "fallback": (env_fallback, ["RUNPOD_API_KEY"])},
    "api_url": {"type": "str", "fallback": (env_fallback, ["RUNPOD_API_URL"])},
}


def main() -> None:
    module = AnsibleModule(ARGUMENTS, supports_check_mode=True)
    given = module.params
    with report_errors(module):
        api = runpod.RunPod(given["api_key"] or "", given["api_url"] or "")
        spec.check_count("gpu_count", given["gpu_count"], 1)
        min_cuda = spec.cuda_version(given["min_cuda"])
        catalogues = {cloud: api.list_gpus(cloud, given["gpu_count"], min_cuda) for cloud in given["clouds"]}
        offers = costs.find_offers(
            catalogues,
            given["gpus"] or sorted({gpu["id"] for catalogue in catalogues.values() for gpu in catalogue}),
            given["gpu_count"],
            given["max_usd_per_hour"] or float("inf"),
            given["memory_gib"],
            given["data_centers"],
        )
        module.exit_json(changed=False, offers=[dataclasses.asdict(offer) for offer in offers])


if __name__ == "__main__":
    main()
