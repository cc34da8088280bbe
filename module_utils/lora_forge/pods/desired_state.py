"""Bring a pod into the state that is wanted: present, stopped or absent; or tell what would be done.

These functions answer the module ``runpod_pod``: they take its options and return what it returns.
"""

from __future__ import annotations

import contextlib
import pathlib
from typing import Any, Optional

from ansible.module_utils.lora_forge import rundir
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.pods import messages, spending, ssh
from ansible.module_utils.lora_forge.pods.claims import (
    Claim,
    Claims,
    active_runs,
    claim_cost,
    parse_name,
    pod_cost,
    retention_notice,
)
from ansible.module_utils.lora_forge.pods.costs import Budget
from ansible.module_utils.lora_forge.pods.lifecycle import PodManager
from ansible.module_utils.lora_forge.pods.release import Releaser
from ansible.module_utils.lora_forge.pods.runpod import ApiError, RunPod, ssh_address
from ansible.module_utils.lora_forge.pods.spec import PodSpec, pod_spec
from ansible.module_utils.lora_forge.pods.watching import Clock, Watch


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
        except ssh.HostKeyChanged as error:
            if not claim.ready_at:  # it holds nothing: another one will do
                return str(error)
            raise UserError(f"{claim.host}: {error}. {retention_notice(claim)}") from None

    manager = PodManager(api, claims, unreachable_reason, wanted=lambda: _still_wanted(options["controller"]))
    spec = pod_spec(options, api, public_key, lambda name: ssh.log_key(key, name))
    if check:
        return _predict(spec, manager)
    return _have(spec, manager, access, options)


def _still_wanted(controller: dict[str, Any]) -> bool:
    """Tell whether the command that asks is still there; its worker outlives it, and nobody would use the pod."""
    return not controller.get("start") or rundir.is_alive(controller)


def _predict(spec: PodSpec, manager: PodManager) -> dict[str, Any]:
    """Tell what :func:`_have` would come to, and what that would cost."""
    prediction = manager.predict(spec)
    pod, offer = prediction.pod, prediction.offer
    if pod and prediction.claim:
        message = messages.found_quote(prediction.claim, manager.clock.now())
        after = messages.diff_view(pod)
    else:
        assert offer is not None
        usd = prediction.allowed_hours * offer.usd_per_hour
        quote = messages.order_quote(spec.host, offer, prediction.hours, prediction.allowed_hours)
        quote += spending.quote(manager.claims, spec.caps, usd, manager.clock.now(), manager.offers.alive(spec))
        message = ". ".join([quote, *spec.notes])
        after = {"state": "RUNNING", "gpu": offer.gpu, "usd_per_hour": offer.usd_per_hour}
    diff = {"before": messages.diff_view(pod), "after": after}
    return {"changed": not pod, "message": message, "pod": pod, "diff": diff}


def _have(spec: PodSpec, manager: PodManager, access: ssh.SshAccess, options: dict[str, Any]) -> dict[str, Any]:
    """Go on towards a pod that answers, and say how to reach it and what it may cost."""
    before = manager.claims.find_open(spec.host)
    progress = manager.advance(spec, options["wait"], options["since"], options["claim"])
    claim, now = progress.claim, manager.clock.now()
    answer = progress.as_dict()
    # One that is taken over is not new: what is no good about it may be the work that it holds.
    known = claim.taken_over or (before and (before.name, before.state) == (claim.name, claim.state))
    answer["changed"] = not known
    answer["usd"] = round(claim_cost(claim, now), 4)
    if progress.phase == "ready" and progress.pod:
        answer["message"] = messages.ready_message(claim, now)
        answer["budget"] = pod_budget(spec, claim, manager.claims, now, options["root"]).as_dict()
        answer["retention_notice"] = retention_notice(claim)
        answer["connection"] = ssh.connection_variables(ssh_address(progress.pod), claim.name, access)
        if answer["changed"]:
            answer["diff"] = {"before": messages.diff_view(None), "after": messages.diff_view(progress.pod)}
    return answer


def pod_budget(spec: PodSpec, claim: Claim, claims: Claims, now: float, root: str) -> Budget:
    """Return what watching needs to keep a pod within its caps.

    Args:
        spec: The pod.
        claim: Its claim.
        claims: This checkout's.
        now: Epoch seconds.
        root: The trainer's folder on it.
    """
    related = [other for other in claims.list_all() if set(other.runs) & set(spec.runs)]
    return Budget(
        usd_per_hour=claim.usd_per_hour,
        spent=round(claims.spent_on(spec.runs, now, claim.name), 4),
        since=claim.asked_at or now,
        max_usd=spec.max_usd,
        max_hours=spec.max_hours,
        deadline=claim.deadline or now,
        pod=claim.pod_id or "",
        pods=[other.pod_id for other in related if other.pod_id],
        claim=str(claims.path_of(claim.name)),
        root=root,
        max_usd_per_day=spec.caps.day,
        max_usd_per_month=spec.caps.month,
        answering=round(spec.answering(claim.gpu or ""), 1),
    )


def _leave(options: dict[str, Any], check: bool, api: RunPod, claims: Claims) -> dict[str, Any]:
    """Stop or release what this owner has ordered for a host."""
    host, stop = options["host"], options["state"] == "stopped"
    clock = Clock()
    releaser = Releaser(api, claims, Watch(claims, clock))
    claim = claims.find_open(host)
    own = [pod for pod in api.list_pods() if parse_name(pod["name"]) == (claims.owner, host)]
    meant = [pod for pod in own if options["id"] in ("", pod["id"])]
    to_leave = [pod for pod in meant if not (stop and pod["status"] == "EXITED")]
    before = next(iter(to_leave or meant), None)
    after = {**before, "status": "EXITED", "cost": 0} if stop and before else None
    # The claim is meant by its host, by its pod's id, or by the id of the first pod that came under its name.
    ours = claim if claim and (not options["id"] or _is_of(claim, options["id"], meant)) else None
    released = False
    if options["unused"] and ours and (runs := active_runs(ours, clock.now())):
        message = f"{host}: kept, as it is in use by now ({', '.join(runs)})"
        return {"changed": False, "phase": "present", "message": message, "pod": before, "claim": ours.as_dict()}
    if not check and stop:
        claims.assert_own_place()
        for pod in to_leave:
            api.stop_pod(pod["id"])
    elif not check:
        released = _release(releaser, host, options, to_leave, ours)
    usd = _cost_of(to_leave, ours, clock.now())
    message = "" if stop else messages.release_message(
        host, bool(to_leave) or released, check, usd, options["reason"]
    )  # fmt: skip
    answer: dict[str, Any] = {
        "changed": bool(to_leave) or released,
        "phase": "stopped" if stop else "absent",
        "message": message,
        "pod": after,
        "diff": {"before": messages.diff_view(before), "after": messages.diff_view(after)},
    }
    if usd is not None and (to_leave or claim):
        answer["usd"] = round(usd, 4)
    return answer | ({"claim": claim.as_dict()} if claim else {})


def _is_of(claim: Claim, pod_id: str, pods: list[dict[str, Any]]) -> bool:
    """Tell whether a pod is the one that a claim is to, and no twin of it."""
    named = any(pod["id"] == pod_id and pod["name"] == claim.name for pod in pods)
    return pod_id == claim.pod_id or (claim.pod_id is None and named)


def _release(
    releaser: Releaser, host: str, options: dict[str, Any], pods: list[dict[str, Any]], claim: Optional[Claim]
) -> bool:
    """Release all that is meant, whatever becomes of one of them.

    Returns:
        Whether the claim had a pod.

    Raises:
        UserError: Some are still there; it names all of them.
    """
    releaser.claims.assert_own_place()
    failures, released = [], False
    for pod in pods:
        if not claim or pod["name"] != claim.name:  # an orphan: ordered, and its claim lost or closed
            try:
                releaser.release_orphan(host, pod, options["reason"])
            except UserError as error:
                failures.append(str(error))
    if claim:
        try:
            released = releaser.release(claim, options["reason"], options["bad"])
            ssh.SshAccess(releaser.claims.folder / "known_hosts", pathlib.Path()).forget_keys(claim.name)
        except UserError as error:
            failures.append(str(error))
    if failures:
        raise UserError("\n".join(failures))
    return released


def _cost_of(pods: list[dict[str, Any]], claim: Optional[Claim], now: float) -> Optional[float]:
    """Return what pods have cost, in USD: by their claim, and else by price and age; None where that is not known."""
    costs = [pod_cost(pod, now) for pod in pods if not claim or pod["name"] != claim.name]
    if any(cost is None for cost in costs):
        return None
    return sum(cost or 0.0 for cost in costs) + (claim_cost(claim, now) if claim else 0.0)
