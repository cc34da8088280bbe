#!/usr/bin/python
"""List the pods of a RunPod account, and whose they are."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: runpod_pod_info
short_description: List the pods of a RunPod account, what they cost, and whose they are
description:
  - Runs on the controller. Pods of this checkout are told from others by the owner id in their names.
  - A pod of this checkout that no live run claims is V(unclaimed); it costs money for nothing. So is a second pod under
    a claim's name, and one whose release was not seen to its end.
  - A checkout that is a copy of another one does not own the pods of that one, and says so.
options:
  host:
    description: Only the pod of this inventory host; empty for all of the account.
    type: str
    default: ''
  billing:
    description: Ask RunPod what it has billed for pods that are gone, and correct their claims and manifests.
    type: bool
    default: false
  owner:
    description: Another owner's id, to look from that one's side; empty for this checkout.
attributes:
  check_mode:
    description: Reads only, and corrects no claim.
extends_documentation_fragment: [lora_forge, lora_forge.runpod, lora_forge.runpod_claims]
"""

EXAMPLES = r"""
- name: See what costs money
  runpod_pod_info:
    state_dir: .pods
  delegate_to: localhost
"""

RETURN = r"""
pods:
  description:
    - The pods, oldest first. C(mine) tells whether this checkout ordered it, C(claimed) which live runs it is for.
    - C(deadline) is where its leash ends it, in epoch seconds, where this checkout knows it; C(retention_notice) says
      in words what it goes on costing.
  returned: success
  type: list
  elements: dict
  sample:
    - {age_h: 1.2, claimed: [witness-3f9a2c1b77e0], deadline: 1764000000, gpu: NVIDIA L40S, host: pod-1,
       id: 7h9k2m4n6p, mine: true, name: lora-forge-3f9a2c1b-pod-1-0c1d2e, status: RUNNING, usd: 1.03,
       usd_per_hour: 0.86}
unclaimed:
  description: This checkout's pods that no live run claims, C(host) and C(id).
  returned: success
  type: list
  elements: dict
  sample: []
usd_per_hour:
  description: What all of them cost together.
  returned: success
  type: float
  sample: 0.86
show:
  description: All of that as a table, C(columns) and C(rows) of the action C(show); in C(lines) their sum, and what
    counts against the caps of all pods.
  returned: success
  type: dict
  sample: {columns: [pod, id], rows: [[pod-1, 7h9k2m4n6p]], lines: ['  1 pods, 0.86 USD/h together']}
"""

import pathlib
import time

from ansible.module_utils.basic import AnsibleModule, env_fallback
from ansible.module_utils.lora_forge.errors import report_errors
from ansible.module_utils.lora_forge.pods import messages, runpod, spending
from ansible.module_utils.lora_forge.pods.claims import Claims, fetch_bills, list_account_pods, with_unlisted

ARGUMENTS = {
    "host": {"type": "str", "default": ""},
    "state_dir": {"type": "path", "required": True},
    "billing": {"type": "bool", "default": False},
    "owner": {"type": "str", "default": ""},
    "api_key": {"type": "str", "no_log": True, "fallback": (env_fallback, ["RUNPOD_API_KEY"])},
    "api_url": {"type": "str", "fallback": (env_fallback, ["RUNPOD_API_URL"])},
}


def main() -> None:
    module = AnsibleModule(ARGUMENTS, supports_check_mode=True)
    given = module.params
    with report_errors(module):
        api = runpod.RunPod(given["api_key"] or "", given["api_url"] or "")
        claims = Claims(pathlib.Path(given["state_dir"]), given["owner"])
        ordered = claims.list_all()
        pods = with_unlisted(api.list_pods(), ordered, api.get_pod)
        pods = list_account_pods(pods, ordered, claims.owner, time.time())
        if given["host"]:
            pods = [pod for pod in pods if pod["mine"] and pod["host"] == given["host"]]
        show = messages.account_table(pods)
        alive = frozenset(pod["name"] for pod in pods)
        show["lines"] += [f"  {line}" for line in spending.summary_lines(claims, time.time(), alive=alive)]
        corrected = given["billing"] and fetch_bills(claims, api.billed_usd, time.time(), module.check_mode)
        if claims.place_notice:
            show["lines"].append(f"  {claims.place_notice}")
        module.exit_json(
            changed=corrected,
            pods=pods,
            unclaimed=[{"host": pod["host"], "id": pod["id"]} for pod in pods if pod["mine"] and not pod["claimed"]],
            usd_per_hour=round(sum(pod["usd_per_hour"] for pod in pods), 4),
            show=show,
        )


if __name__ == "__main__":
    main()
