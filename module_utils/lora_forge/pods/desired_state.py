"""Bring a pod into the state that is wanted: present, stopped or absent; or tell what would be done."""

from __future__ import annotations

import contextlib
import pathlib
from typing import Any

from ansible.module_utils.lora_forge.pods import lifecycle, messages, runpod, spec, ssh
from ansible.module_utils.lora_forge.pods.claims import Claims, claim_cost, parse_name, retention_notice


def bring_about(given: dict[str, Any], check: bool, api: runpod.RunPod) -> dict[str, Any]:
    """Do what the module ``runpod_pod`` is asked for; returns its answer.

    Args:
        given: The module's options.
        check: Predict only.
        api: RunPod.
    """
    folder = pathlib.Path(given["state_dir"]).absolute()
    claims = Claims(folder, given["owner"])
    if given["state"] != "present":
        with contextlib.nullcontext() if check else claims.locked(given["host"]):
            return leave(given, check, api, claims)
    own = folder / "id_ed25519"
    if check and not given["ssh_key"] and not own.exists():
        key, public = own, "ssh-ed25519 made-with-the-first-pod"
    else:
        key, public = ssh.ensure_key_pair(given["ssh_key"], folder)
    access = ssh.SshAccess(folder / "known_hosts", key)

    def closed(pod: dict[str, Any], claim: dict[str, Any]) -> Any:
        ssh = runpod.ssh_address(pod)
        try:
            return access.unreachable_reason(claim["name"], ssh["host"], ssh["port"], lambda: api.read_log(pod["id"]))
        except runpod.ApiError as error:
            return f"its log cannot be read yet: {error.status} {error.detail}"

    able = lifecycle.Pods(api, claims, closed)
    asked = spec.wanted(given, api, public)
    if check:
        found = able.predict(asked)
        after = found["pod"] or {"status": "RUNNING", "gpu": {"id": found["offer"].gpu},
                                 "cost": found["offer"].usd_per_hour}  # fmt: skip
        return {
            "changed": not found["pod"],
            "word": messages.quote(given["host"], found, able.now()),
            "pod": found["pod"],
            "diff": {"before": messages.view(found["pod"]), "after": messages.view(after)},
        }
    before = claims.open(given["host"])
    found = able.advance(asked, given["wait"], given["since"])
    claim = found["claim"]
    found["changed"] = before is None or before["state"] != claim["state"] or before["name"] != claim["name"]
    if found["phase"] == "ready":
        found["budget"] = lifecycle.pod_budget(asked, claim, claims, able.now()) | {"root": given["root"]}
        found["keeps"] = retention_notice(claim)
        found["connection"] = ssh.connection_variables(runpod.ssh_address(found["pod"]), claim["name"], access)
        if found["changed"]:
            found["diff"] = {"before": messages.view(None), "after": messages.view(found["pod"])}
    return {**found, "usd": round(claim_cost(claim, able.now()), 4)}


def leave(given: dict[str, Any], check: bool, api: runpod.RunPod, claims: Claims) -> dict[str, Any]:
    """Stop or release what this owner has ordered for a host; returns the module's answer."""
    claim = claims.open(given["host"])
    mine = [pod for pod in api.list_pods() if parse_name(pod["name"]) == (claims.owner, given["host"])]
    mine = [pod for pod in mine if given["id"] in ("", pod["id"])]
    stop = given["state"] == "stopped"
    found = [pod for pod in mine if not (stop and pod["status"] == "EXITED")]
    pod = next(iter(found or mine), None)
    after = {**pod, "status": "EXITED", "cost": 0} if stop and pod else None
    answer = {"changed": bool(found), "phase": "stopped" if stop else "absent", "word": "", "pod": after,
              "diff": {"before": messages.view(pod), "after": messages.view(after)}}  # fmt: skip
    able = lifecycle.Pods(api, claims, lambda pod, claim: None)
    if not check:
        for one in found:
            if stop:
                api.stop_pod(one["id"])
            elif not claim or one["name"] != claim["name"]:  # an orphan: ordered, and its claim lost or closed
                api.delete_pod(one["id"])
        if claim and not stop and (not given["id"] or given["id"] == claim["pod_id"]):
            able.release(claim, given["reason"], given["bad"])
            ssh.SshAccess(claims.folder / "known_hosts", pathlib.Path()).forget_keys(claim["name"])
    return answer | ({"claim": claim, "usd": round(claim_cost(claim, able.now()), 4)} if claim else {})
