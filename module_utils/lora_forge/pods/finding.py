"""Which pods of an account are this checkout's: a claim's own, its twins, and those that no claim knows."""

from __future__ import annotations

from typing import Any, Optional

from ansible.module_utils.lora_forge.pods.claims import Claim, Claims, parse_name, parse_time, pod_price
from ansible.module_utils.lora_forge.pods.runpod import ApiError, RunPod
from ansible.module_utils.lora_forge.pods.spec import PodSpec
from ansible.module_utils.lora_forge.pods.watching import Clock


class Finder:
    """Finds pods by their names, which this checkout gave them, and notes in the claim what RunPod says of one.

    Args:
        api: RunPod.
        claims: This checkout's.
        clock: What the time is.
        notes: Gets what was released on the way, in sentences.
    """

    def __init__(self, api: RunPod, claims: Claims, clock: Clock, notes: list[str]):
        self.api, self.claims, self.clock, self.notes = api, claims, clock, notes

    def find_pod(self, claim: Claim, tidy: bool) -> Optional[dict[str, Any]]:
        """Find a claim's pod, by its unique name, or its id.

        Args:
            claim: The claim.
            tidy: Release what else there is of this host: twins (an order that was thought lost), of which one stays,
                and what came after its claim was closed.
        """
        if not claim.asked_at:
            return None
        listed = self.api.list_pods()
        twins = list({pod["id"]: pod for pod in listed if pod["name"] == claim.name}.values())
        if claim.pod_id and claim.pod_id not in [pod["id"] for pod in twins]:  # a list may lag behind
            twins += [pod for pod in [self.api.get_pod(claim.pod_id)] if pod]
        twins.sort(key=lambda pod: (pod["id"] != claim.pod_id, pod.get("createdAt") or ""))
        if tidy:
            for twin in twins[1:]:
                self._discard(claim, twin, "was ordered twice; the second one")
            closed = {other.name: other for other in self.claims.list_all() if other.released_at}
            for late in listed:
                if late["name"] in closed and parse_name(late["name"]) == (self.claims.owner, claim.host):
                    self._discard(closed[late["name"]], late, "came after its claim was closed; it")
        if not twins:
            return None
        pod = twins[0]
        price = pod_price(pod)  # 0 while it is stopped, or has only just begun
        facts = {"pod_id": pod["id"], "unclear": False, "seen": True}
        if claim.pod_id != pod["id"]:
            facts["state"] = "ordered"
        if price:
            facts |= {"usd_per_hour": price, "priced": True}
        if claim.watched_for == "gone":
            facts |= {"watched_for": ""}
        if any(getattr(claim, name) != value for name, value in facts.items()):
            self.claims.update(claim, **facts)
        return pod

    def _discard(self, claim: Claim, pod: dict[str, Any], what: str) -> None:
        """Delete a pod that nobody wants; one that is there still is met again at the next look, and by reap."""
        try:
            if not self.api.delete_pod(pod["id"]):
                return
        except ApiError as error:
            self.notes.append(
                f"{pod['id']} {what} could not be released, and goes on costing: {error}. To release it: "
                "playbooks/reap.yml -e confirm=true"
            )
            return
        born = parse_time(pod.get("createdAt")) or claim.made_at
        usd = max(0.0, self.clock.now() - born) / 3600 * (pod_price(pod) or claim.usd_per_hour)
        self.claims.update(claim, extra_usd=round(claim.extra_usd + usd, 4))
        self.notes.append(f"{pod['id']} {what} is released")

    def find_orphan(self, host: str) -> Optional[dict[str, Any]]:
        """Find a pod of this owner and host to which no claim is known."""
        known = {claim.name for claim in self.claims.list_all()}
        mine = [pod for pod in self.api.list_pods() if parse_name(pod["name"]) == (self.claims.owner, host)]
        return next((pod for pod in mine if pod["name"] not in known), None)

    def claimable_facts(self, spec: PodSpec, pod: dict[str, Any]) -> dict[str, Any]:
        """Return what a claim holds of a pod that is taken over."""
        born = parse_time(pod.get("createdAt")) or self.clock.now()
        deadline = pod.get("deadline") or born + spec.max_hours * 3600
        return {
            "name": pod["name"],
            "pod_id": pod["id"],
            "gpu": (pod.get("gpu") or {}).get("id"),
            "cloud": pod.get("cloud"),
            "usd_per_hour": pod_price(pod) or spec.max_usd_per_hour,  # not known yet: as much as it may be
            "taken_over": True,
            "priced": bool(pod_price(pod)),
            "seen": True,
            "asked_at": born,
            "deadline": deadline,
            "allowance_s": round(deadline - born),
        }
