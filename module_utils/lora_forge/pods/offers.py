"""What may be ordered for a pod now, and for how long: within its own caps, and those of all pods."""

from __future__ import annotations

from typing import Any

from ansible.module_utils.lora_forge import rundir
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.pods import costs, spending
from ansible.module_utils.lora_forge.pods.claims import Claim, Claims
from ansible.module_utils.lora_forge.pods.costs import Offer
from ansible.module_utils.lora_forge.pods.runpod import RunPod
from ansible.module_utils.lora_forge.pods.spec import PodSpec
from ansible.module_utils.lora_forge.pods.spending import Caps
from ansible.module_utils.lora_forge.pods.watching import Clock

BAD_FOR = 3600.0  # seconds for which it is remembered that a pod was no good


class Offers:
    """RunPod's offers, as far as they are fit and affordable.

    Args:
        api: RunPod.
        claims: This checkout's.
        clock: What the time is.
    """

    def __init__(self, api: RunPod, claims: Claims, clock: Clock):
        self.api, self.claims, self.clock = api, claims, clock

    def affordable(self, spec: PodSpec, spent: float, name: str = "") -> list[tuple[Offer, float]]:
        """List the offers on which the training fits into the caps, each with the hours that its pod may live.

        Raises:
            UserError: There is none.
        """
        affordable, refusal = [], ""
        alive = self.alive(spec)
        for offer in self._bad_ones_last(self._find(spec), spec.host):
            estimate = spec.estimate(offer.gpu)
            hours = costs.allowed_hours(estimate, offer.usd_per_hour, spec.max_hours, spec.max_usd, spent)
            if hours > 0 and (estimate is None or estimate <= hours):
                within, words = self._hours_within_caps(spec, offer, hours, self.clock.now(), alive, name)
                if words:
                    refusal = refusal or words
                else:
                    affordable.append((offer, within))
                continue
            before = f"{spent:.2f} USD are spent on it; " if spent else ""
            need = f"about {costs.hours_text(estimate or 0)} and {(estimate or 0) * offer.usd_per_hour:.2f} USD"
            refusal = refusal or (
                f"{spec.host}: {before}{offer.gpu} at {offer.usd_per_hour:.2f} USD/h would take {need}; "
                f"pod_max_hours is {spec.max_hours:g}, pod_max_usd {spec.max_usd:g}. Nothing was ordered"
            )
        if not affordable:
            raise UserError(refusal)
        return affordable

    def _find(self, spec: PodSpec) -> list[Offer]:
        """List what may be ordered now, in order.

        Raises:
            UserError: Nothing ever, or not within the caps.
        """
        catalogues = {cloud: self.api.list_gpus(cloud, spec.count, spec.min_cuda) for cloud in spec.clouds}
        return costs.find_offers(
            catalogues, spec.gpus, spec.count, spec.max_usd_per_hour, spec.memory_gib, spec.data_centers,
            spec.floor_gib, spec.classes,
        )  # fmt: skip

    def _bad_ones_last(self, offers: list[Offer], host: str) -> list[Offer]:
        """Sort the offers: last come those that gave a bad pod a short while ago."""
        bad = [claim.gpu for claim in self.bad_claims(host)]
        return sorted(offers, key=lambda offer: bad.count(offer.gpu))

    def bad_claims(self, host: str) -> list[Claim]:
        """List the claims of a host whose pods were no good, a short while ago."""
        now, claims = self.clock.now(), self.claims.list_all()
        return [one for one in claims if one.host == host and one.bad and now - (one.released_at or 0) < BAD_FOR]

    def alive(self, spec: PodSpec) -> frozenset[str]:
        """Name the pods that RunPod has, where a cap over all pods asks for it."""
        return frozenset(pod["name"] for pod in self.api.list_pods()) if spec.caps != Caps() else frozenset()

    def _hours_within_caps(
        self, spec: PodSpec, offer: Offer, hours: float, now: float, alive: frozenset[str], name: str = ""
    ) -> tuple[float, str]:
        """Return the hours that the caps over all pods leave; or why they are too few, in words.

        Args:
            spec: The pod.
            offer: What it would be.
            hours: What its own caps leave.
            now: Epoch seconds.
            alive: The names of all pods that RunPod has.
            name: Of its own claim, which is left out.
        """
        known = spending.known_claims(self.claims, self.claims.known_owner, name) if spec.caps != Caps() else []
        # So much dearer than the catalogue says it may be.
        rate = offer.usd_per_hour * costs.TOLERANCE
        deadline, limit = spending.latest_deadline(known, spec.caps, now, now + hours * 3600, rate, now, alive)
        needed = min(hours, spec.estimate(offer.gpu) or costs.OVERHEAD)
        within = min(hours, (deadline - now) / 3600)
        if limit and within < needed:
            return within, spending.refusal(spec.host, offer.gpu, offer.usd_per_hour, needed, limit)
        return within, ""

    def reserve(self, spec: PodSpec, claim: Claim, offer: Offer, hours: float, alive: frozenset[str]) -> None:
        """Write into the claim what is about to be ordered, as far as the caps over all pods allow it at this moment.

        Raises:
            UserError: Another order was faster.
        """
        with spending.locked(self.claims):
            now = self.clock.now()
            hours, words = self._hours_within_caps(spec, offer, hours, now, alive, claim.name)
            if words:
                self.claims.update(claim, state="claimed", asked_at=None, deadline=None, allowance_s=None)
                raise UserError(words)
            self.claims.update(
                claim, state="asked", asked_at=now, gpu=offer.gpu, cloud=offer.cloud, usd_per_hour=offer.usd_per_hour,
                allowance_s=round(hours * 3600), deadline=round(now + hours * 3600), boot_since=now,
                offered=offer.usd_per_hour, priced=False, seen=False, asked_uptime=self.clock.uptime(),
                boot=rundir.boot_id(), unclear=True, watched_for="",
            )  # fmt: skip
            spending.remember(self.claims, claim.owner, spec.caps, now)


def is_capped(spec: PodSpec) -> bool:
    """Tell whether a pod may only cost so much, by itself or with all others."""
    return bool(spec.max_usd) or spec.caps != Caps()


def order_request(spec: PodSpec, claim: Claim, offer: Offer) -> dict[str, Any]:
    """Return the request that orders a pod."""
    gpu: dict[str, Any] = {"id": offer.gpu, "count": spec.count}  # without the count it is refused
    if spec.min_cuda:
        gpu["minCudaVersion"] = spec.min_cuda
    leash = {"LORA_FORGE_DEADLINE": str(claim.deadline), "LORA_FORGE_ALLOWANCE": str(claim.allowance_s)}
    leash["LORA_FORGE_LOG_KEY"] = spec.log_key(claim.name)
    request = {**spec.request, "name": claim.name, "cloud": offer.cloud, "gpu": gpu}
    request["env"] = {**spec.request["env"], **leash}
    return request | ({"dataCenterIds": spec.data_centers} if spec.data_centers else {})
