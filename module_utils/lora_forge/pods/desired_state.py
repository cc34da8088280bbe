"""Bring a pod into the state that is wanted: present, stopped or absent; or tell what would be done.

These functions answer the module ``runpod_pod``: they take its options and return what it returns.
"""

from __future__ import annotations

import contextlib
import pathlib
from typing import Any, Optional

from ansible.module_utils.lora_forge.pods import messages, spending, ssh
from ansible.module_utils.lora_forge.pods.claims import Claim, Claims, claim_cost, parse_name, retention_notice
from ansible.module_utils.lora_forge.pods.lifecycle import PodManager, pod_budget
from ansible.module_utils.lora_forge.pods.runpod import ApiError, RunPod, ssh_address
from ansible.module_utils.lora_forge.pods.spec import PodSpec, pod_spec


def bring_about(options: dict[str, Any], check: bool, api: RunPod) -> dict[str, Any]:
    """Do what the module ``runpod_pod`` is asked for, as far as that goes in the time that it is given.

    Args:
        options: The module's.
        check: Predict only.
        api: RunPod.

    Returns:
        The module's answer.

    Raises:
        UserError: It cannot be done. Nothing is left that costs money and is not claimed.
    """
    folder = pathlib.Path(options["state_dir"]).absolute()
    claims = Claims(folder, options["owner"])
    if options["state"] != "present":
        with contextlib.nullcontext() if check else claims.locked(options["host"]):
            return _leave(options, check, api, claims)
    own_key = folder / "id_ed25519"
    if check and not options["ssh_key"] and not own_key.exists():
        key, public_key = own_key, "ssh-ed25519 made-with-the-first-pod"
    else:
        key, public_key = ssh.ensure_key_pair(options["ssh_key"], folder)
    access = ssh.SshAccess(folder / "known_hosts", key)

    def unreachable_reason(pod: dict[str, Any], claim: Claim) -> Optional[str]:
        address = ssh_address(pod)
        try:
            return access.unreachable_reason(
                claim.name, address["host"], address["port"], lambda: api.read_log(pod["id"])
            )
        except ApiError as error:
            return f"its log cannot be read yet: {error.status} {error.detail}"

    manager = PodManager(api, claims, unreachable_reason)
    spec = pod_spec(options, api, public_key)
    if check:
        return _predict(spec, manager)
    return _have(spec, manager, access, options)


def _predict(spec: PodSpec, manager: PodManager) -> dict[str, Any]:
    """Tell what :func:`_have` would come to, and what that would cost."""
    prediction = manager.predict(spec)
    pod, offer = prediction.pod, prediction.offer
    if pod and prediction.claim:
        message = messages.found_quote(prediction.claim, manager.now())
        after = messages.diff_view(pod)
    else:
        assert offer is not None
        message = messages.order_quote(spec.host, offer, prediction.hours, prediction.allowed_hours)
        usd = prediction.allowed_hours * offer.usd_per_hour
        message += spending.quote(manager.claims, spec.caps, usd, manager.now(), manager.alive(spec))
        after = {"state": "RUNNING", "gpu": offer.gpu, "usd_per_hour": offer.usd_per_hour}
    diff = {"before": messages.diff_view(pod), "after": after}
    return {"changed": not pod, "message": message, "pod": pod, "diff": diff}


def _have(spec: PodSpec, manager: PodManager, access: ssh.SshAccess, options: dict[str, Any]) -> dict[str, Any]:
    """Go on towards a pod that answers, and say how to reach it and what it may cost."""
    before = manager.claims.find_open(spec.host)
    progress = manager.advance(spec, options["wait"], options["since"])
    claim, now = progress.claim, manager.now()
    answer = progress.as_dict()
    answer["changed"] = before is None or (before.name, before.state) != (claim.name, claim.state)
    answer["usd"] = round(claim_cost(claim, now), 4)
    if progress.phase == "ready" and progress.pod:
        answer["message"] = messages.ready_message(claim, now)
        answer["budget"] = pod_budget(spec, claim, manager.claims, now, options["root"]).as_dict()
        answer["retention_notice"] = retention_notice(claim)
        answer["connection"] = ssh.connection_variables(ssh_address(progress.pod), claim.name, access)
        if answer["changed"]:
            answer["diff"] = {"before": messages.diff_view(None), "after": messages.diff_view(progress.pod)}
    return answer


def _leave(options: dict[str, Any], check: bool, api: RunPod, claims: Claims) -> dict[str, Any]:
    """Stop or release what this owner has ordered for a host."""
    host, stop = options["host"], options["state"] == "stopped"
    manager = PodManager(api, claims, lambda pod, claim: None)
    claim = claims.find_open(host)
    own = [pod for pod in api.list_pods() if parse_name(pod["name"]) == (claims.owner, host)]
    meant = [pod for pod in own if options["id"] in ("", pod["id"])]
    to_leave = [pod for pod in meant if not (stop and pod["status"] == "EXITED")]
    before = next(iter(to_leave or meant), None)
    after = {**before, "status": "EXITED", "cost": 0} if stop and before else None
    if not check:
        for pod in to_leave:
            if stop:
                api.stop_pod(pod["id"])
            elif not claim or pod["name"] != claim.name:  # an orphan: ordered, and its claim lost or closed
                api.delete_pod(pod["id"])
        if claim and not stop and (not options["id"] or options["id"] == claim.pod_id):
            manager.release(claim, options["reason"], options["bad"])
            ssh.SshAccess(claims.folder / "known_hosts", pathlib.Path()).forget_keys(claim.name)
    usd = round(claim_cost(claim, manager.now()), 4) if claim else 0.0
    message = "" if stop else messages.release_message(host, bool(to_leave), check, usd, options["reason"])
    answer = {
        "changed": bool(to_leave),
        "phase": "stopped" if stop else "absent",
        "message": message,
        "pod": after,
        "diff": {"before": messages.diff_view(before), "after": messages.diff_view(after)},
    }
    return answer | ({"claim": claim.as_dict(), "usd": usd} if claim else {})
