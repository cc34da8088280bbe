"""A pod from its order to its release, step by step: claimed before it is ordered, and never ordered twice."""

from __future__ import annotations

import dataclasses
import re
import time
from typing import Any, Callable, Optional

from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.json_record import JsonRecord
from ansible.module_utils.lora_forge.pods import costs, spending
from ansible.module_utils.lora_forge.pods.claims import (
    Claim,
    Claims,
    claim_cost,
    parse_name,
    parse_time,
    retention_notice,
)
from ansible.module_utils.lora_forge.pods.costs import Budget, Offer
from ansible.module_utils.lora_forge.pods.runpod import ApiError, RunPod, ssh_address, without_environment
from ansible.module_utils.lora_forge.pods.spec import PodSpec
from ansible.module_utils.lora_forge.pods.spending import Caps

SETTLE = 30.0  # seconds in which a pod whose order got no clear answer may still appear in the list
_POLL = 2.0  # seconds between two looks at a pod that boots, and later a fifteenth of its age, up to POLL_LATER
_POLL_LATER = 10.0
_WANTED_EVERY = 60.0  # seconds between two notes in a claim that its pod is wanted
RETRY = 15.0  # seconds between two rounds over all candidates when there is no capacity
BAD_FOR = 3600.0  # seconds for which a bad machine is remembered
# How RunPod says that there is no capacity: a 400 with nothing but words to tell it from a broken rule.
NO_CAPACITY = re.compile(
    r"instances? (are |is )?(currently )?available|capacity|resources|out of stock|(not |un)available|no longer any"
    r"|no available|could not be placed|no machine|different machine",
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True)
class Progress(JsonRecord):
    """How far a pod is.

    Attributes:
        phase: waiting (for capacity), ordering, booting or ready.
        message: How far it is, in a sentence; empty when it is ready.
        pod: As RunPod has it, without its environment; None while there is none.
        claim: This checkout's claim to it.
        notes: What was given up or taken over on the way, in sentences.
    """

    phase: str
    message: str
    pod: Optional[dict[str, Any]]
    claim: Claim
    notes: list[str]


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What would be done for a pod: it is there, or it would be ordered.

    Attributes:
        pod: The pod that is there; None where one would be ordered.
        claim: This checkout's claim to that one.
        offer: What would be asked for first.
        hours: What the pod's runs take on it, as estimated; None where nothing is known.
        allowed_hours: After so many its leash would end it.
    """

    pod: Optional[dict[str, Any]] = None
    claim: Optional[Claim] = None
    offer: Optional[Offer] = None
    hours: Optional[float] = None
    allowed_hours: float = 0.0


class PodManager:
    """Brings a declared pod about, step by step; everything it has to remember is in the claim.

    Args:
        api: RunPod.
        claims: This checkout's.
        unreachable_reason: Tells why a pod cannot be reached by SSH yet, or None.
        now: The time in epoch seconds.
        sleep: Waits, in seconds.
    """

    def __init__(
        self,
        api: RunPod,
        claims: Claims,
        unreachable_reason: Callable[[dict[str, Any], Claim], Optional[str]],
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self.api, self.claims, self.unreachable_reason = api, claims, unreachable_reason
        self.now, self.sleep = now, sleep
        self.notes: list[str] = []  # what was given up or taken over on the way, in sentences

    def advance(self, spec: PodSpec, seconds: float, since: str = "") -> Progress:
        """Go on towards a pod that answers, until there is something to tell, or for so long at most.

        Args:
            spec: The pod.
            seconds: The longest wait.
            since: The message that was told already.

        Raises:
            UserError: It cannot be had. Nothing is left that costs money and is not claimed.
        """
        until = self.now() + seconds
        while True:
            with self.claims.locked(spec.host):
                progress = self._step(spec)
            if progress.phase == "ready" or progress.message != since or self.notes or self.now() >= until:
                return progress
            pause = max(_POLL, min(self._age(progress.claim) / 15, _POLL_LATER))
            self.sleep(min(pause, max(0.1, until - self.now())))

    def _progress(self, phase: str, message: str, pod: Optional[dict[str, Any]], claim: Claim) -> Progress:
        return Progress(phase, message, without_environment(pod) if pod else None, claim, self.notes)

    def _age(self, claim: Claim) -> float:
        """Return the seconds since a pod was asked for; 0 while it is not."""
        return self.now() - (claim.asked_at or self.now())

    def _step(self, spec: PodSpec) -> Progress:
        """Find out how far the pod is, and do what comes next."""
        claim = self.claims.find_open(spec.host) or self._adopt_orphan(spec)
        if spec.find_only and not (claim and claim.pod_id):
            raise UserError(f"{spec.host} is not rented: nothing of it runs. train.yml orders it")
        claim = claim or self._open_claim(spec)
        if self.now() - claim.wanted_at > _WANTED_EVERY:
            self.claims.update(claim, wanted_at=self.now())
        if claim.state == "waiting" and self._age(claim) < RETRY:
            return self._progress("waiting", claim.word, None, claim)
        if self._age(claim) > 10 * RETRY:
            self.claims.update(claim, waiting_since=None)  # nobody has been waiting since
        if set(spec.runs) != set(claim.runs):
            claim = self.claims.update(claim, runs=sorted({*claim.runs, *spec.runs}), output=spec.output)
        pod = self._find_pod(claim)
        if pod is None:
            if claim.pod_id and self._age(claim) < SETTLE:
                return self._progress("booting", "it is ordered, and not in RunPod's list yet", None, claim)
            if spec.find_only:
                raise UserError(f"{spec.host}: pod {claim.pod_id} is gone. train.yml orders another one")
            if claim.pod_id:
                self._close_lost(claim)
                claim = self._open_claim(spec)
            elif claim.state == "asked" and self._age(claim) < SETTLE:
                return self._progress("ordering", "the order got no clear answer; looking for its pod", None, claim)
            return self._order(spec, claim)
        return self._check_boot(spec, claim, pod)

    def _open_claim(self, spec: PodSpec, **known: Any) -> Claim:
        return self.claims.open_claim(spec.host, spec.runs, self.now(), output=spec.output, **known)

    def _adopt_orphan(self, spec: PodSpec) -> Optional[Claim]:
        """Claim a pod of this owner and host that is there though no claim is: from another controller, say."""
        pod = self._find_orphan(spec.host)
        if not pod:
            return None
        self.notes.append(f"{pod['id']} is there already; taken over")
        # Ready, as far as is known: it may hold a training, and is not released when it does not answer.
        now = self.now()
        return self._open_claim(spec, **self._claimable_facts(spec, pod), state="ordered", boot_since=now, ready_at=now)

    def _find_orphan(self, host: str) -> Optional[dict[str, Any]]:
        """Find a pod of this owner and host to which no claim is known."""
        known = {claim.name for claim in self.claims.list_all()}
        mine = [pod for pod in self.api.list_pods() if parse_name(pod["name"]) == (self.claims.owner, host)]
        return next((pod for pod in mine if pod["name"] not in known), None)

    def _claimable_facts(self, spec: PodSpec, pod: dict[str, Any]) -> dict[str, Any]:
        """Return what a claim holds of a pod that is taken over."""
        born = parse_time(pod.get("createdAt")) or self.now()
        deadline = pod.get("deadline") or born + spec.max_hours * 3600
        return {
            "name": pod["name"],
            "pod_id": pod["id"],
            "gpu": (pod.get("gpu") or {}).get("id"),
            "cloud": pod.get("cloud"),
            "usd_per_hour": float(pod.get("cost") or 0),
            "asked_at": born,
            "deadline": deadline,
            "allowance_s": round(deadline - born),
        }

    def _find_pod(self, claim: Claim) -> Optional[dict[str, Any]]:
        """Find a claim's pod, by its unique name, or its id. Of twins (an order that was thought lost) one stays."""
        if not claim.asked_at:
            return None
        twins = list({pod["id"]: pod for pod in self.api.list_pods() if pod["name"] == claim.name}.values())
        if claim.pod_id and not twins:  # a list may lag behind
            twins = [pod for pod in [self.api.get_pod(claim.pod_id)] if pod]
        twins.sort(key=lambda pod: (pod["id"] != claim.pod_id, pod.get("createdAt") or ""))
        for twin in twins[1:]:
            self.api.delete_pod(twin["id"])
            self.notes.append(f"{twin['id']} was ordered twice; the second one is released")
        if not twins:
            return None
        pod = twins[0]
        rate = float(pod.get("cost") or 0) or claim.usd_per_hour  # 0 while it is stopped
        if claim.pod_id != pod["id"]:
            self.claims.update(claim, pod_id=pod["id"], state="ordered")
        if claim.usd_per_hour != rate:
            self.claims.update(claim, usd_per_hour=rate)
        return pod

    def _close_lost(self, claim: Claim) -> None:
        """Close the claim to a pod that is gone though this checkout has not released it.

        Raises:
            UserError: Its leash ended it: another one would go the same way.
        """
        ended = min(self.now(), claim.deadline or self.now())  # it cannot have cost more than until then
        self.claims.update(
            claim, released_at=ended, state="gone", word="it was gone", usd=round(claim_cost(claim, ended), 4)
        )
        if claim.deadline and self.now() > claim.deadline:
            raise UserError(
                f"{claim.host}: its leash ended the pod after "
                f"{costs.hours_text((ended - (claim.asked_at or ended)) / 3600)}, "
                f"{claim_cost(claim, self.now()):.2f} USD. Checkpoints that were fetched are kept; for more time: "
                "-e pod_max_hours=…, and -e pod_max_usd=… where that is set. The same command orders another pod"
            )
        self.notes.append(f"pod {claim.pod_id} of {claim.host} is gone, by somebody else's hand or RunPod's")

    def _find_offers(self, spec: PodSpec) -> list[Offer]:
        """List what may be ordered now, in order.

        Raises:
            UserError: Nothing ever, or not within the caps.
        """
        catalogues = {cloud: self.api.list_gpus(cloud, spec.count, spec.min_cuda) for cloud in spec.clouds}
        return costs.find_offers(
            catalogues, spec.gpus, spec.count, spec.max_usd_per_hour, spec.memory_gib, spec.data_centers,
            spec.floor_gib, spec.classes,
        )  # fmt: skip

    def _affordable_offers(self, spec: PodSpec, spent: float, name: str = "") -> list[tuple[Offer, float]]:
        """List the offers on which the training fits into the caps, each with the hours that its pod may live.

        Raises:
            UserError: There is none.
        """
        affordable, refusal = [], ""
        alive = self.alive(spec)
        for offer in self._bad_ones_last(self._find_offers(spec), spec.host):
            estimate = spec.estimate(offer.gpu)
            hours = costs.allowed_hours(estimate, offer.usd_per_hour, spec.max_hours, spec.max_usd, spent)
            if hours > 0 and (estimate is None or estimate <= hours):
                within, words = self._hours_within_caps(spec, offer, hours, self.now(), alive, name)
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

    def _reserve(self, spec: PodSpec, claim: Claim, offer: Offer, hours: float, alive: frozenset[str]) -> None:
        """Write into the claim what is about to be ordered, as far as the caps over all pods allow it at this moment.

        Raises:
            UserError: Another order was faster.
        """
        with spending.locked(self.claims):
            now = self.now()
            hours, words = self._hours_within_caps(spec, offer, hours, now, alive, claim.name)
            if words:
                self.claims.update(claim, state="claimed", asked_at=None, deadline=None, allowance_s=None)
                raise UserError(words)
            self.claims.update(
                claim, state="asked", asked_at=now, gpu=offer.gpu, cloud=offer.cloud, usd_per_hour=offer.usd_per_hour,
                allowance_s=round(hours * 3600), deadline=round(now + hours * 3600), boot_since=now,
            )  # fmt: skip
            spending.remember(self.claims, claim.owner, spec.caps, now)

    def predict(self, spec: PodSpec) -> Prediction:
        """Tell what :meth:`advance` would do, without doing it.

        Raises:
            UserError: It cannot be ordered like this.
        """
        claim = self.claims.find_open(spec.host)
        if claim and claim.asked_at:
            pod = next((pod for pod in self.api.list_pods() if pod["name"] == claim.name), None)
            if pod:
                return Prediction(pod, claim)
        elif not claim and (self.claims.folder / "owner").exists():
            pod = self._find_orphan(spec.host)
            if pod:
                return Prediction(pod, Claim(host=spec.host, **self._claimable_facts(spec, pod)))
        offer, hours = self._affordable_offers(spec, self.claims.spent_on(spec.runs, self.now()))[0]
        return Prediction(offer=offer, hours=spec.estimate(offer.gpu), allowed_hours=hours)

    def _order(self, spec: PodSpec, claim: Claim) -> Progress:
        """Ask for each candidate once; when all are out of stock, that is said, and the caller asks again."""
        if claim.waiting_since and self.now() - claim.waiting_since > spec.order_timeout:
            shortage = claim.word
            self.claims.update(claim, released_at=self.now(), state="given up", word="no capacity")
            raise UserError(
                f"{spec.host}: {shortage}, within {spec.order_timeout:.0f} s. Nothing is rented. Name more GPUs in "
                "pod_gpus, another cloud, or wait longer: -e pod_order_timeout=…"
            )
        spent = self.claims.spent_on(spec.runs, self.now(), claim.name)
        refused: list[ApiError] = []
        alive = self.alive(spec)
        for offer, hours in self._affordable_offers(spec, spent, claim.name):
            # On disk before the order: whatever happens from here on, the pod is found again by its name.
            self._reserve(spec, claim, offer, hours, alive)
            try:
                pod = self.api.create_pod(self._create_request(spec, claim, offer))
            except ApiError as error:
                if error.unclear:
                    return self._progress(
                        "ordering", f"{error.status or 'no answer'}; looking for its pod", None, claim
                    )
                if error.status not in (400, 403):
                    self.claims.update(claim, released_at=self.now(), state="given up", word=str(error))
                    raise
                refused.append(error)
                continue
            price = float(pod.get("cost") or offer.usd_per_hour)
            self.claims.update(claim, state="ordered", pod_id=pod["id"], usd_per_hour=price)
            if price > spec.max_usd_per_hour or (
                self._is_capped(spec) and price > offer.usd_per_hour * costs.TOLERANCE
            ):
                self.release(claim, f"it costs {price:.2f} USD/h, more than RunPod's catalogue said")
                raise UserError(f"{spec.host}: {offer.gpu} was offered at {offer.usd_per_hour:.2f} USD/h, but the "
                                 f"pod cost {price:.2f}; it was released at once")  # fmt: skip
            message = f"{offer.gpu}, {offer.cloud}, {price:.2f} USD/h: ordered"
            message += f"; {offer.warning}" if offer.warning else ""
            return self._progress("booting", message, pod, claim)
        if all(error.status == 403 for error in refused) or not any(NO_CAPACITY.search(e.detail) for e in refused):
            # Every candidate fails alike: that is the request, or the account, not the stock.
            rule = next((error for error in refused if error.status == 400), refused[-1])
            self.claims.update(claim, released_at=self.now(), state="given up", word=rule.detail)
            raise rule
        detail = next(error.detail for error in refused if NO_CAPACITY.search(error.detail))
        shortage = f"no capacity for {', '.join(spec.gpus)} ({detail.rstrip('.')})"
        self.claims.update(claim, state="waiting", word=shortage, waiting_since=claim.waiting_since or self.now())
        return self._progress("waiting", shortage, None, claim)

    def _is_capped(self, spec: PodSpec) -> bool:
        return bool(spec.max_usd) or spec.caps != Caps()

    def _create_request(self, spec: PodSpec, claim: Claim, offer: Offer) -> dict[str, Any]:
        """Return the request that orders a pod."""
        gpu: dict[str, Any] = {"id": offer.gpu, "count": spec.count}  # without the count it is refused
        if spec.min_cuda:
            gpu["minCudaVersion"] = spec.min_cuda
        leash = {"LORA_FORGE_DEADLINE": str(claim.deadline), "LORA_FORGE_ALLOWANCE": str(claim.allowance_s)}
        request = {**spec.request, "name": claim.name, "cloud": offer.cloud, "gpu": gpu}
        request["env"] = {**spec.request["env"], **leash}
        return request | ({"dataCenterIds": spec.data_centers} if spec.data_centers else {})

    def _bad_ones_last(self, offers: list[Offer], host: str) -> list[Offer]:
        """Sort the offers: last come those that gave a bad pod a short while ago."""
        bad = [claim.gpu for claim in self.claims.list_all() if claim.host == host and self._is_recently_bad(claim)]
        return sorted(offers, key=lambda offer: bad.count(offer.gpu))

    def _is_recently_bad(self, claim: Claim) -> bool:
        return claim.bad and self.now() - (claim.released_at or 0) < BAD_FOR

    def _check_boot(self, spec: PodSpec, claim: Claim, pod: dict[str, Any]) -> Progress:
        """See how far a pod is; give it up when it is no good."""
        if pod["status"] in ("EXITED", "ERROR"):  # started again it may come back without its GPU
            persistent = (pod.get("mounts") or {}).get("persistent")
            if spec.find_only or (claim.ready_at and persistent):
                raise UserError(
                    f"{spec.host} is {pod['status']}: somebody stopped it, or the balance is used up. What it holds "
                    f"may be wanted, so it is not replaced. {retention_notice(claim)}"
                )
            return self._replace(spec, claim, pod, f"it is {pod['status']}")
        ssh = ssh_address(pod)
        if (
            ssh
            and not claim.ready_at
            and not spec.find_only
            and any(self._is_recently_bad(other) and other.machine == ssh["host"] for other in self.claims.list_all())
        ):
            return self._replace(spec, claim, pod, f"it is the bad machine {ssh['host']} again", counts=False)
        mapped = bool(ssh) and pod["status"] == "RUNNING"
        why = self.unreachable_reason(pod, claim) if mapped else f"it is {pod['status']}, and has no SSH port yet"
        if not why:
            if claim.state != "ready" or claim.boot_since:
                ready_at = claim.ready_at or self.now()
                self.claims.update(
                    claim, state="ready", boot_since=None, ready_at=ready_at, machine=ssh["host"], word=""
                )
            return self._progress("ready", "", pod, claim)
        boot_since = claim.boot_since
        if not boot_since:  # it was ready once: its container, or the network, went away
            boot_since = self.now()
            self.claims.update(claim, boot_since=boot_since)
        if self.now() - boot_since > spec.boot_timeout:
            # What it holds may be worth more than it costs: that is the user's to say.
            if claim.ready_at or spec.find_only:
                raise UserError(
                    f"{spec.host} has not answered SSH for {spec.boot_timeout:.0f} s, though RunPod says "
                    f"{pod['status']} ({why}). {retention_notice(claim)}"
                )
            return self._replace(spec, claim, pod, f"it did not answer SSH within {spec.boot_timeout:.0f} s ({why})")
        return self._progress("booting", why, pod, claim)

    def _replace(self, spec: PodSpec, claim: Claim, pod: dict[str, Any], why: str, counts: bool = True) -> Progress:
        """Release a pod that is no good, and claim another one.

        Args:
            spec: What is wanted.
            claim: Its claim.
            pod: The pod.
            why: In words.
            counts: Whether it is one of the attempts.

        Raises:
            UserError: There were enough.
        """
        claim.machine = ssh_address(pod).get("host") or claim.machine
        self.release(claim, why, bad=counts and not claim.ready_at)
        note = f"pod {claim.pod_id} ({claim.gpu}) is released: {why}"
        self.notes.append(note)
        too_long = self.now() - claim.began_at > spec.order_timeout
        if not claim.ready_at and (claim.attempt >= spec.attempts if counts else too_long):
            raise UserError(
                f"{spec.host}: {note}. It was number {claim.attempt} of {spec.attempts}; nothing is rented any "
                "longer. An image without sshd does not answer SSH; if it is RunPod's machines, try other pod_gpus"
            )
        chain = {} if claim.ready_at else {"began_at": claim.began_at, "attempt": claim.attempt + counts}
        following = self._open_claim(spec, **chain)
        return self._progress("ordering", "another one", None, following)

    def release(self, claim: Claim, why: str, bad: bool = False) -> bool:
        """Delete a claim's pod and close the claim; True when there was a pod.

        Args:
            claim: The claim.
            why: For its file.
            bad: Remember the machine.
        """
        gone = bool(claim.pod_id and self.api.delete_pod(claim.pod_id))
        while claim.asked_at:
            pods = [pod for pod in self.api.list_pods() if pod["name"] == claim.name and pod["id"] != claim.pod_id]
            for pod in pods:
                gone = self.api.delete_pod(pod["id"]) or gone
            # An order that got no clear answer may still bring a pod.
            if claim.state != "asked" or gone or self._age(claim) > SETTLE:
                break
            self.sleep(_POLL)
        now = self.now()
        self.claims.update(
            claim, released_at=now, state="released", word=why, bad=bad, usd=round(claim_cost(claim, now), 4)
        )
        return gone


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
    )
