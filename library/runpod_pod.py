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
  state_dir:
    description: Where claims, pinned host keys and the checkout's own key pair lie.
    type: path
    required: true
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
  gpus:
    description: GPU types by RunPod's id or name, in the order in which they are tried.
    type: list
    elements: str
    default: []
  gpu_count:
    description: GPUs of the pod.
    type: int
    default: 1
  clouds:
    description: Where it may be.
    type: list
    elements: str
    choices: [SECURE, COMMUNITY]
    default: [SECURE]
  max_usd_per_hour:
    description: The most that the pod may cost an hour.
    type: float
    default: 0
  max_usd:
    description: The most that all pods of these runs may cost together; 0 for no such cap.
    type: float
    default: 0
  max_hours:
    description: The longest that the pod may live.
    type: float
    default: 24
  min_cuda:
    description: The lowest CUDA version of the machine's driver.
    type: str
    default: "13.0"
  data_centers:
    description: Where it may be; empty for anywhere.
    type: list
    elements: str
    default: []
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
    description: The trainer's root on the pod, where its leash looks for runs.
    type: str
    default: /workspace/lora-forge
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
    description: The RV(word) that was told already.
    type: str
    default: ''
  reason:
    description: Why it is released, for its claim.
    type: str
    default: no longer wanted
  bad:
    description: Whether it is released because its machine is no good; that one is not taken again for an hour.
    type: bool
    default: false
  id:
    description: Only this pod of the host, for O(state=absent) and O(state=stopped).
    type: str
    default: ''
  owner:
    description: Another owner's id, to act for that one; empty for this checkout.
    type: str
    default: ''
  api_key:
    description: RunPod's key; by default the variable E(RUNPOD_API_KEY).
    type: str
  api_url:
    description: Where the API is; by default the variable E(RUNPOD_API_URL), or RunPod's own.
    type: str
attributes:
  check_mode:
    description: Orders and releases nothing; says what it would order, at what price, and for how long at most.
    support: full
  diff_mode:
    description: Shows status, GPU and price before and after.
    support: full
author:
  - lora-forge
"""

EXAMPLES = r"""
- name: Have a pod
  runpod_pod:
    host: pod-1
    state_dir: .pods
    gpus: [NVIDIA L40S, NVIDIA A100-SXM4-80GB]
    max_usd_per_hour: 2
    image: runpod/pytorch:1.0.2-cu1281-torch280-ubuntu2404
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
  description: One of waiting (for capacity), ordering, booting, ready; or stopped, or absent.
  returned: when it is not check mode
  type: str
  sample: ready
word:
  description: How far it is, or what would be ordered, in a sentence.
  returned: success
  type: str
  sample: NVIDIA L40S, SECURE, 0.86 USD/h
done:
  description: What was given up on the way, in sentences.
  returned: when O(state=present)
  type: list
  elements: str
  sample: []
pod:
  description: The pod as RunPod has it, without its environment.
  returned: when it is there
  type: dict
  sample: {id: 7h9k2m4n6p, status: RUNNING}
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
keeps:
  description: What it goes on costing, until when, and the two ways on.
  returned: when it is ready
  type: str
  sample: It costs 0.86 USD/h until its leash ends it at 2026-11-23 18:32. …
usd:
  description: What it has cost, by its price and the time since its order.
  returned: when there is a claim
  type: float
  sample: 0.43
"""

import contextlib
import pathlib
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule, env_fallback
from ansible.module_utils.lora_forge.errors import UserError, report_errors
from ansible.module_utils.lora_forge.planned_run import TRAINER_ROOT
from ansible.module_utils.lora_forge.pods import costs, leash, lifecycle, runpod, ssh
from ansible.module_utils.lora_forge.pods.claims import Claims, claim_cost, parse_name, retention_notice

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
    "root": {"type": "str", "default": TRAINER_ROOT},
    "leash": {"type": "path"},
    "ssh_key": {"type": "str", "default": "", "no_log": False},  # a path
    "order_timeout": {"type": "int", "default": 3600},
    "boot_timeout": {"type": "int", "default": 900},
    "attempts": {"type": "int", "default": 3},
    "wait": {"type": "float", "default": 20},
    "since": {"type": "str", "default": ""},
    "reason": {"type": "str", "default": "no longer wanted"},
    "bad": {"type": "bool", "default": False},
    "id": {"type": "str", "default": ""},
    "owner": {"type": "str", "default": ""},
    "api_key": {"type": "str", "no_log": True, "fallback": (env_fallback, ["RUNPOD_API_KEY"])},
    "api_url": {"type": "str", "fallback": (env_fallback, ["RUNPOD_API_URL"])},
}


def wanted(given: dict[str, Any], api: runpod.RunPod, public_key: str) -> lifecycle.PodSpec:
    """What the arguments ask for, checked as far as that goes without ordering.

    Raises:
        UserError: Something is missing, or contradicts something else.
    """
    for name, example in (("gpus", "[NVIDIA L40S]"), ("max_usd_per_hour", "1.20"), ("image", "runpod/pytorch:…")):
        if not given[name]:
            raise UserError(f"{given['host']}: pod_{name} is not set; name it in the inventory: pod_{name}: {example}")
    on_volume = f"{given['root']}/".startswith(f"{given['mount'].rstrip('/')}/")
    if (given["volume"] or given["network_volume"]) and not on_volume:
        raise UserError(
            f"{given['host']}: trainer_root {given['root']} does not lie on the volume, which is mounted at "
            f"{given['mount']}; what is trained would be lost with the container"
        )
    if given["volume"] and given["network_volume"]:
        raise UserError(f"{given['host']}: pod_volume and pod_network_volume exclude each other")
    centers = given["data_centers"]
    if given["network_volume"]:
        volume = api.volume(given["network_volume"])
        if centers and volume["dataCenter"] not in centers:
            raise UserError(
                f"{given['host']}: network volume {volume['id']} is in {volume['dataCenter']}, but pod_data_centers "
                f"holds {', '.join(centers)}; a pod can use a volume of its own data center only"
            )
        centers = [volume["dataCenter"]]
    mounts: dict[str, Any] = {}
    if given["network_volume"]:
        mounts = {"network": [{"volumeId": given["network_volume"], "path": given["mount"]}]}
    elif given["volume"]:
        mounts = {"persistent": {"size": given["volume"], "path": given["mount"]}}
    if not given["leash"]:
        raise UserError("leash is not set; name roles/pod/files/leash.py. No pod is ordered without one")
    args, program = leash.wrap_start(pathlib.Path(given["leash"]).read_text(encoding="utf-8"), given["start_command"])
    env = {
        **{name: str(value) for name, value in given["env"].items()},
        "PUBLIC_KEY": public_key,
        "LORA_FORGE_LEASH": program,
        "LORA_FORGE_ROOT": given["root"],
        "LORA_FORGE_API": api.url,
    }
    request = {"image": given["image"], "disk": given["disk"], "ports": ["22/tcp"], "args": args, "env": env}
    size, floor = (
        max((run["estimate"].get(key) or 0 for run in given["runs"]), default=0)
        for key in ("memory_gib", "memory_floor_gib")
    )
    sizes = [run["estimate"].get("memory_classes") or {} for run in given["runs"]]
    return lifecycle.PodSpec(
        host=given["host"], runs=[run["run_id"] for run in given["runs"]], output=given["output"], gpus=given["gpus"],
        count=given["gpu_count"], clouds=given["clouds"], max_usd_per_hour=given["max_usd_per_hour"],
        max_usd=given["max_usd"], max_hours=given["max_hours"], memory_gib=size, floor_gib=floor,
        min_cuda=given["min_cuda"], data_centers=centers, request=request | ({"mounts": mounts} if mounts else {}),
        estimate=lambda gpu: costs.pod_hours(given["runs"], gpu),
        order_timeout=given["order_timeout"], boot_timeout=given["boot_timeout"],
        attempts=given["attempts"], find_only=given["find_only"],
        classes={name: max(one.get(name, 0) for one in sizes) for one in sizes[:1] for name in one},
    )  # fmt: skip


def quote(host: str, found: dict[str, Any]) -> str:
    """What would happen, in a sentence, with prices."""
    if found["pod"]:
        claim = found["claim"]
        until = costs.hours_text(max(0.0, claim["deadline"] - time.time()) / 3600)
        return (
            f"{host} is there: {claim['gpu']} at {claim['usd_per_hour']:.2f} USD/h, "
            f"{claim_cost(claim, time.time()):.2f} USD so far; its leash ends it in {until}"
        )
    offer, hours, limit = found["offer"], found["hours"], found["allowance"]
    about = "how long it takes is not known" if hours is None else (
        f"about {costs.hours_text(hours)}, {hours * offer.usd_per_hour:.2f} USD (an estimate, not measured)"
    )  # fmt: skip
    return (
        f"{host} would be {offer.gpu} ({offer.cloud}, stock {offer.stock}) at {offer.usd_per_hour:.2f} USD/h: {about}; "
        f"its leash ends it after {costs.hours_text(limit)}, {limit * offer.usd_per_hour:.2f} USD, at the latest"
        + (f". {offer.doubt}" if offer.doubt else "")
    )


def view(pod: Any) -> dict[str, Any]:
    """What a diff shows of a pod."""
    if not pod:
        return {"state": "absent"}
    return {"state": pod["status"], "gpu": (pod.get("gpu") or {}).get("id"), "usd_per_hour": pod.get("cost")}


def main() -> None:
    module = AnsibleModule(ARGUMENTS, supports_check_mode=True)
    given = module.params
    with report_errors(module):
        api = runpod.RunPod(given["api_key"] or "", given["api_url"] or "")
        folder = pathlib.Path(given["state_dir"]).absolute()
        claims = Claims(folder, given["owner"])
        if given["state"] != "present":
            with contextlib.nullcontext() if module.check_mode else claims.locked(given["host"]):
                answer = leave(module, api, claims)
            module.exit_json(**answer)
        own = folder / "id_ed25519"
        if module.check_mode and not given["ssh_key"] and not own.exists():
            key, public = own, "ssh-ed25519 made-with-the-first-pod"
        else:
            key, public = ssh.key_pair(given["ssh_key"], folder)
        access = ssh.SshAccess(folder / "known_hosts", key)

        def closed(pod: dict[str, Any], claim: dict[str, Any]) -> Any:
            ssh = runpod.ssh_address(pod)
            try:
                return access.unreachable_reason(claim["name"], ssh["host"], ssh["port"], lambda: api.log(pod["id"]))
            except runpod.ApiError as error:
                return f"its log cannot be read yet: {error.status} {error.detail}"

        able = lifecycle.Pods(api, claims, closed)
        asked = wanted(given, api, public)
        if module.check_mode:
            found = able.predict(asked)
            after = found["pod"] or {"status": "RUNNING", "gpu": {"id": found["offer"].gpu},
                                     "cost": found["offer"].usd_per_hour}  # fmt: skip
            module.exit_json(
                changed=not found["pod"], word=quote(given["host"], found),
                pod=found["pod"], diff={"before": view(found["pod"]), "after": view(after)},
            )  # fmt: skip
        before = claims.open(given["host"])
        found = able.advance(asked, given["wait"], given["since"])
        claim = found["claim"]
        found["changed"] = before is None or before["state"] != claim["state"] or before["name"] != claim["name"]
        if found["phase"] == "ready":
            found["budget"] = lifecycle.pod_budget(asked, claim, claims, time.time()) | {"root": given["root"]}
            found["keeps"] = retention_notice(claim)
            found["connection"] = ssh.connection_variables(runpod.ssh_address(found["pod"]), claim["name"], access)
            if found["changed"]:
                found["diff"] = {"before": view(None), "after": view(found["pod"])}
        module.exit_json(**found, usd=round(claim_cost(claim, time.time()), 4))


def leave(module: AnsibleModule, api: runpod.RunPod, claims: Claims) -> dict[str, Any]:
    """Stop or release what this owner has ordered for a host; returns the module's answer."""
    given = module.params
    claim = claims.open(given["host"])
    mine = [pod for pod in api.pods() if parse_name(pod["name"]) == (claims.owner, given["host"])]
    mine = [pod for pod in mine if given["id"] in ("", pod["id"])]
    stop = given["state"] == "stopped"
    found = [pod for pod in mine if not (stop and pod["status"] == "EXITED")]
    pod = next(iter(found or mine), None)
    after = {**pod, "status": "EXITED", "cost": 0} if stop and pod else None
    answer = {"changed": bool(found), "phase": "stopped" if stop else "absent", "word": "", "pod": after,
              "diff": {"before": view(pod), "after": view(after)}}  # fmt: skip
    if not module.check_mode:
        able = lifecycle.Pods(api, claims, lambda pod, claim: None)
        for one in found:
            if stop:
                api.stop(one["id"])
            elif not claim or one["name"] != claim["name"]:  # an orphan: ordered, and its claim lost or closed
                api.release(one["id"])
        if claim and not stop and (not given["id"] or given["id"] == claim["pod_id"]):
            able.release(claim, given["reason"], given["bad"])
            ssh.SshAccess(claims.folder / "known_hosts", pathlib.Path()).forget(claim["name"])
    return answer | ({"claim": claim, "usd": round(claim_cost(claim, time.time()), 4)} if claim else {})


if __name__ == "__main__":
    main()
