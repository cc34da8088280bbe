"""A pod from its order to its release, step by step: claimed before it is ordered, and never ordered twice."""

from __future__ import annotations

import dataclasses
import re
import time
from typing import Any, Callable, Optional

from ansible.module_utils.lora_forge import rundir
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.json_record import JsonRecord
from ansible.module_utils.lora_forge.pods import costs, spending
from ansible.module_utils.lora_forge.pods.claims import (
    Claim,
    Claims,
    claim_cost,
    parse_name,
    parse_time,
    pod_price,
    retention_notice,
)
from ansible.module_utils.lora_forge.pods.costs import Budget, Offer
from ansible.module_utils.lora_forge.pods.runpod import ApiError, RunPod, ssh_address, ssh_problem, without_environment
from ansible.module_utils.lora_forge.pods.spec import PodSpec
from ansible.module_utils.lora_forge.pods.spending import Caps

SETTLE = 30.0  # seconds of watching, from the loss of its order's answer, in which a pod may still appear in the list
LOOKS = 3  # as often at least RunPod must say that a pod is not there
_STEP = 15.0  # seconds: no more of the time between two looks counts as watched
PRICE_WAIT = 90.0  # seconds in which RunPod must say what a running pod costs
_GONE_WAIT = 60.0  # seconds in which a pod that was deleted must be gone
_POLL = 2.0  # seconds between two looks at a pod that boots, and later a fifteenth of its age, up to POLL_LATER
_POLL_LATER = 10.0
_WANTED_EVERY = 60.0  # seconds between two notes in a claim that its pod is wanted
RETRY = 15.0  # seconds between two rounds over all candidates when there is no capacity
PAUSE = 15.0  # seconds before the order after a pod that was no good; twice as many after the next one
_PAUSE_MOST = 240.0
BAD_FOR = 3600.0  # seconds for which it is remembered that a pod was no good
# How RunPod says that there is no capacity: a 400 with nothing but words to tell it from a broken rule.
NO_CAPACITY = re.compile(
    r"instances? (are |is )?(currently )?available|capacity|resources|out of stock|(not |un)available|no longer any"
    r"|no available|could not be placed|no machine|different machine",
    re.IGNORECASE,
)


def _uptime() -> float:
    """Return seconds by a clock that nobody sets; where the system has one, it goes on while the machine sleeps."""
    return rundir.uptime() if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


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
        now: The time in epoch seconds, by a clock that may be set.
        sleep: Waits, in seconds.
        uptime: Seconds by a clock that nobody sets.
        wanted: Tells whether the command that wants the pod still lives.
    """

    def __init__(
        self,
        api: RunPod,
        claims: Claims,
        unreachable_reason: Callable[[dict[str, Any], Claim], Optional[str]],
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
        uptime: Callable[[], float] = _uptime,
        wanted: Callable[[], bool] = lambda: True,
    ):
        self.api, self.claims, self.unreachable_reason = api, claims, unreachable_reason
        self.now, self.sleep, self.uptime, self.wanted = now, sleep, uptime, wanted
        self.notes: list[str] = []  # what was given up or taken over on the way, in sentences
        self._working = ""  # the name of the claim that is worked for
        self._marks: dict[str, float] = {}  # when this process last looked, by the claim's name

    def advance(self, spec: PodSpec, seconds: float, since: str = "", working: str = "") -> Progress:
        """Go on towards a pod that answers, until there is something to tell, or for so long at most.

        Args:
            spec: The pod.
            seconds: The longest wait.
            since: The message that was told already.
            working: The name of the claim that the same command was told of before.

        Raises:
            UserError: It cannot be had. Nothing is left that costs money and is not claimed.
        """
        if not spec.find_only:
            self.claims.assert_own_place()
        self._working = working
        began = self.uptime()
        while True:
            with self.claims.locked(spec.host):
                progress = self._step(spec)
            left = seconds - (self.uptime() - began)
            if progress.phase == "ready" or progress.message != since or self.notes or left <= 0:
                return progress
            pause = max(_POLL, min(self._age(progress.claim) / 15, _POLL_LATER))
            self.sleep(min(pause, max(0.1, left)))

    def _progress(self, phase: str, message: str, pod: Optional[dict[str, Any]], claim: Claim) -> Progress:
        return Progress(phase, message, without_environment(pod) if pod else None, claim, self.notes)

    def _age(self, claim: Claim) -> float:
        """Return the seconds since a pod was asked for; 0 while it is not."""
        return self.now() - (claim.asked_at or self.now())

    def _step(self, spec: PodSpec) -> Progress:
        """Find out how far the pod is, and do what comes next."""
        claim = self._current_claim(spec) or self._adopt_orphan(spec)
        if spec.find_only and not (claim and claim.pod_id):
            raise UserError(f"{spec.host} is not rented: nothing of it runs. train.yml orders it")
        if claim and claim.state == "releasing":
            self._finish_release(spec, claim)
            claim = None
        claim = claim or self._open_claim(spec)
        self._working = claim.name
        if abs(self.now() - claim.wanted_at) > _WANTED_EVERY:  # or the clock was set back
            self.claims.update(claim, wanted_at=self.now())
        if claim.state in ("claimed", "waiting") and claim.pause_s:
            if self._watch(claim, "pause") < claim.pause_s:
                return self._progress("waiting", claim.word, None, claim)
            self.claims.update(claim, pause_s=0.0)
        if self._age(claim) > 10 * RETRY:
            self.claims.update(claim, waiting_since=None)  # nobody has been waiting since
        # A checkout that was moved has its output elsewhere.
        if set(spec.runs) - set(claim.runs) or (spec.runs and spec.output != claim.output):
            claim = self.claims.update(claim, runs=sorted({*claim.runs, *spec.runs}), output=spec.output)
        pod = self._find_pod(claim, tidy=not spec.find_only)
        if pod:
            self._refuse_price(spec, claim)
            return self._check_boot(spec, claim, pod)
        if claim.pod_id or claim.state == "asked":
            settled = self._settled(claim)
            if spec.find_only and (settled or claim.seen):
                raise UserError(f"{spec.host}: pod {claim.pod_id} is gone. train.yml orders another one")
            if not settled:
                if claim.pod_id and not claim.ready_at:
                    return self._progress("booting", "it is ordered, and not in RunPod's list yet", None, claim)
                if claim.pod_id:
                    return self._progress("booting", "RunPod does not know it any more; looking again", None, claim)
                return self._progress("ordering", "the order got no clear answer; looking for its pod", None, claim)
            if claim.pod_id or self._ended_unseen(claim):
                return self._progress("ordering", "another one", None, self._follow_lost(spec, claim))
            if claim.lost_orders >= spec.attempts:
                self.claims.update(claim, released_at=self.now(), state="given up", word="no clear answers")
                raise UserError(
                    f"{spec.host}: {claim.lost_orders} orders got no clear answer from RunPod, and none of their pods "
                    "has appeared. RunPod is out of order, or the network; look at playbooks/reap.yml in a while, and "
                    "then run the same command again"
                )
        return self._order(spec, claim)

    def _current_claim(self, spec: PodSpec) -> Optional[Claim]:
        """Return the open claim.

        Raises:
            UserError: Somebody else has closed the one that is worked for: nobody wants the pod any more.
        """
        claim = self.claims.find_open(spec.host)
        if self._working and (claim is None or claim.state == "releasing"):
            own = self.claims.read(self._working)
            if own and (own.released_at or own.state == "releasing"):
                raise UserError(
                    f"{spec.host}: its pod was given up meanwhile by another command ({own.word}), so no other one is "
                    "ordered. The same command begins anew"
                )
        return claim

    def _finish_release(self, spec: PodSpec, claim: Claim) -> None:
        """Go on with a release that was not seen to its end.

        Raises:
            UserError: It is still there, or its time was up.
        """
        if spec.find_only:
            raise UserError(f"{spec.host}: its pod is being released ({claim.word}). {retention_notice(claim)}")
        self.release(claim, claim.word, claim.bad)
        self.notes.append(f"pod {claim.pod_id} of {claim.host} is released at last: {claim.word}")

    def _watch(self, claim: Claim, what: str) -> float:
        """Look once more, and return for how long that is watched by now, by a clock that nobody sets.

        Only what lies between two looks of one process counts. What passed while nobody looked proves nothing.

        Args:
            claim: The claim; what is watched for stands in it, so another process goes on from there.
            what: gone, price or pause.
        """
        mark = self.uptime()
        anew = claim.watched_for != what
        since = mark - self._marks.get(claim.name, mark)
        self._marks[claim.name] = mark
        watched = (0.0 if anew else claim.watched_s) + max(0.0, min(since, _STEP))
        looks = 1 if anew else claim.looks + 1
        self.claims.update(claim, watched_for=what, watched_s=round(watched, 3), looks=looks)
        return watched

    def _settled(self, claim: Claim) -> bool:
        """Look once more for a pod that RunPod does not show, and tell whether it is proven that there is none."""
        needed = min(SETTLE * 2 ** max(0, claim.lost_orders - 1), _PAUSE_MOST)
        return self._watch(claim, "gone") >= needed and claim.looks >= LOOKS

    def _end_of(self, claim: Claim) -> float:
        """Return the time now; no less than its order and what has passed since, should the clock have been set back.

        A pod cannot have cost more than until its deadline, by which its leash ends it.
        """
        ended = self.now()
        if claim.asked_at and claim.asked_uptime is not None and claim.boot == rundir.boot_id():
            ended = max(ended, claim.asked_at + self.uptime() - claim.asked_uptime)
        return ended

    def _ended_unseen(self, claim: Claim) -> bool:
        """Tell whether a pod that nobody has seen may have lived until its leash ended it."""
        return bool(claim.unclear and claim.deadline and self._end_of(claim) > claim.deadline)

    def _open_claim(self, spec: PodSpec, **known: Any) -> Claim:
        claim = self.claims.open_claim(spec.host, spec.runs, self.now(), output=spec.output, **known)
        bad = [other for other in self.claims.list_all() if other.host == spec.host and self._is_recently_bad(other)]
        failures = max(claim.attempt - 1, len(bad))
        if failures and not claim.pod_id:
            pause = min(PAUSE * 2 ** (failures - 1), _PAUSE_MOST)
            word = f"{failures} {'pods were' if failures > 1 else 'pod was'} no good; the next order in {pause:.0f} s"
            self.claims.update(claim, pause_s=pause, word=word)
        return claim

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
            "usd_per_hour": pod_price(pod) or spec.max_usd_per_hour,  # not known yet: as much as it may be
            "taken_over": True,
            "priced": bool(pod_price(pod)),
            "seen": True,
            "asked_at": born,
            "deadline": deadline,
            "allowance_s": round(deadline - born),
        }

    def _find_pod(self, claim: Claim, tidy: bool) -> Optional[dict[str, Any]]:
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
        usd = max(0.0, self.now() - born) / 3600 * (pod_price(pod) or claim.usd_per_hour)
        self.claims.update(claim, extra_usd=round(claim.extra_usd + usd, 4))
        self.notes.append(f"{pod['id']} {what} is released")

    def _follow_lost(self, spec: PodSpec, claim: Claim) -> Claim:
        """Close the claim to a pod that is gone though this checkout has not released it, and open the next one.

        Raises:
            UserError: Its leash ended it: another one would go the same way. Or there were enough.
        """
        now = self._end_of(claim)
        ended = min(now, claim.deadline or now)  # it cannot have cost more than until then
        unseen = 0.0 if claim.pod_id else (ended - (claim.asked_at or ended)) / 3600 * claim.usd_per_hour
        self.claims.update(claim, extra_usd=claim.extra_usd + unseen)
        self.claims.update(
            claim, released_at=ended, state="gone", word="it was gone", usd=round(claim_cost(claim, ended), 4)
        )
        if not claim.pod_id:
            self.notes.append(
                f"an order for {claim.host} got no clear answer. Its pod may have lived until its leash ended it, so "
                f"{unseen:.2f} USD are counted for it"
            )
            return self._open_claim(spec)
        if claim.deadline and now > claim.deadline:
            raise self._leash_error(claim)
        self.notes.append(f"pod {claim.pod_id} of {claim.host} is gone, by somebody else's hand or RunPod's")
        return self._next_attempt(spec, claim, self.notes[-1])

    def _leash_error(self, claim: Claim) -> UserError:
        """Return what is said of a pod that its leash has ended."""
        ended = claim.released_at or self.now()
        return UserError(
            f"{claim.host}: its leash ended the pod after "
            f"{costs.hours_text((ended - (claim.asked_at or ended)) / 3600)}, "
            f"{claim_cost(claim, ended):.2f} USD. Checkpoints that were fetched are kept; for more time: "
            "-e pod_max_hours=…, and -e pod_max_usd=… where that is set. The same command orders another pod"
        )

    def _next_attempt(self, spec: PodSpec, claim: Claim, note: str) -> Claim:
        """Open the claim that follows on one whose pod was no good.

        Raises:
            UserError: There were enough.
        """
        if claim.ready_at:
            return self._open_claim(spec)
        if claim.attempt >= spec.attempts:
            raise UserError(
                f"{spec.host}: {note}. It was number {claim.attempt} of {spec.attempts}; nothing is rented any "
                "longer. An image without sshd does not answer SSH; if it is RunPod's machines, try other pod_gpus"
            )
        return self._open_claim(spec, began_at=claim.began_at, attempt=claim.attempt + 1)

    def _refuse_price(self, spec: PodSpec, claim: Claim) -> None:
        """Release a pod that costs more than it may.

        Raises:
            UserError: It does. One that may hold a training is left to the user.
        """
        price, offered = claim.usd_per_hour, claim.offered
        if spec.find_only or not claim.priced:
            return
        if claim.ready_at:
            if price > spec.max_usd_per_hour:
                raise UserError(
                    f"{spec.host} costs {price:.2f} USD/h, and pod_max_usd_per_hour is {spec.max_usd_per_hour:.2f}. "
                    f"What it holds may be wanted, so it is not released. {retention_notice(claim)}"
                )
            return
        if price > spec.max_usd_per_hour or (self._is_capped(spec) and offered and price > offered * costs.TOLERANCE):
            self.release(claim, f"it costs {price:.2f} USD/h, more than RunPod's catalogue said")
            raise UserError(
                f"{spec.host}: {claim.gpu} was offered at {offered or spec.max_usd_per_hour:.2f} USD/h, but the pod "
                f"cost {price:.2f}; it was released at once"
            )

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
                offered=offer.usd_per_hour, priced=False, seen=False, asked_uptime=self.uptime(),
                boot=rundir.boot_id(), unclear=True, watched_for="",
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
            if not self.wanted():
                raise UserError(f"{spec.host}: the command that wanted a pod is gone; no pod is ordered")
            # On disk before the order: whatever happens from here on, the pod is found again by its name.
            self._reserve(spec, claim, offer, hours, alive)
            try:
                pod = self.api.create_pod(self._create_request(spec, claim, offer))
            except ApiError as error:
                self._marks[claim.name] = self.uptime()  # from now on it may appear, not since it was asked for
                if error.unclear:
                    self.claims.update(claim, lost_at=self.now(), lost_orders=claim.lost_orders + 1)
                    return self._progress(
                        "ordering", f"{error.status or 'no answer'}; looking for its pod", None, claim
                    )
                claim.unclear = False
                if error.status not in (400, 403):
                    self.claims.update(claim, released_at=self.now(), state="given up", word=str(error))
                    raise
                refused.append(error)
                continue
            self._marks[claim.name] = self.uptime()
            price = pod_price(pod)
            self.claims.update(
                claim, state="ordered", pod_id=pod["id"], unclear=False, priced=bool(price),
                usd_per_hour=price or offer.usd_per_hour,
            )  # fmt: skip
            self._refuse_price(spec, claim)
            price = claim.usd_per_hour
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
        self.claims.update(
            claim, state="waiting", word=shortage, waiting_since=claim.waiting_since or self.now(), pause_s=RETRY,
            watched_for="",
        )  # fmt: skip
        return self._progress("waiting", shortage, None, claim)

    def _is_capped(self, spec: PodSpec) -> bool:
        return bool(spec.max_usd) or spec.caps != Caps()

    def _create_request(self, spec: PodSpec, claim: Claim, offer: Offer) -> dict[str, Any]:
        """Return the request that orders a pod."""
        gpu: dict[str, Any] = {"id": offer.gpu, "count": spec.count}  # without the count it is refused
        if spec.min_cuda:
            gpu["minCudaVersion"] = spec.min_cuda
        leash = {"LORA_FORGE_DEADLINE": str(claim.deadline), "LORA_FORGE_ALLOWANCE": str(claim.allowance_s)}
        leash["LORA_FORGE_LOG_KEY"] = spec.log_key(claim.name)
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
        if pod["status"] == "RUNNING" and not (claim.priced or claim.ready_at or spec.find_only):
            if self._watch(claim, "price") < PRICE_WAIT:
                return self._progress("booting", "RunPod does not say yet what it costs", pod, claim)
            unknown = f"RunPod does not say what it costs, {PRICE_WAIT:.0f} s after it began to run"
            return self._replace(spec, claim, pod, unknown, bad=False)
        if ssh_problem(pod) and not claim.ready_at and not spec.find_only:
            return self._replace(spec, claim, pod, ssh_problem(pod))
        mapped = bool(ssh) and pod["status"] == "RUNNING"
        unmapped = ssh_problem(pod) or f"it is {pod['status']}, and has no SSH port yet"
        why = self.unreachable_reason(pod, claim) if mapped else unmapped
        if not why:
            if claim.state != "ready" or claim.boot_since:
                ready_at = claim.ready_at or self.now()
                self.claims.update(
                    claim, state="ready", boot_since=None, ready_at=ready_at, machine=ssh["host"], word=""
                )
            return self._progress("ready", "", pod, claim)
        boot_since = claim.boot_since
        # It was ready once: its container, or the network, went away. Or the clock was set back.
        if not boot_since or boot_since > self.now():
            boot_since = self.now()
            self.claims.update(claim, boot_since=boot_since)
        if self.now() - boot_since > spec.boot_timeout:
            # What it holds may be worth more than it costs: that is the user's to say.
            if claim.ready_at or spec.find_only:
                raise UserError(
                    f"{spec.host} has not answered SSH for {spec.boot_timeout:.0f} s, though RunPod says "
                    f"{pod['status']} ({why}). {retention_notice(claim)}"
                )
            # What runs and has its port mapped, and does not answer, has an image without sshd as likely as not.
            why = f"it did not answer SSH within {spec.boot_timeout:.0f} s ({why})"
            return self._replace(spec, claim, pod, why, bad=not mapped)
        return self._progress("booting", why, pod, claim)

    def _replace(self, spec: PodSpec, claim: Claim, pod: dict[str, Any], why: str, bad: bool = True) -> Progress:
        """Release a pod that is no good, and claim another one.

        Args:
            spec: What is wanted.
            claim: Its claim.
            pod: The pod.
            why: In words.
            bad: Whether its machine is to blame.

        Raises:
            UserError: There were enough, or its time was up.
        """
        claim.machine = ssh_address(pod).get("host") or claim.machine
        self.release(claim, why, bad=bad and not claim.ready_at)
        if claim.deadline and (claim.released_at or 0) > claim.deadline:
            raise self._leash_error(claim)
        note = f"pod {claim.pod_id} ({claim.gpu}) is released: {why}"
        self.notes.append(note)
        return self._progress("ordering", "another one", None, self._next_attempt(spec, claim, note))

    def release(self, claim: Claim, why: str, bad: bool = False) -> bool:
        """Delete a claim's pod, see it gone, and close the claim; True when there was a pod.

        Args:
            claim: The claim. It stays open, and marked, until nothing of it is left.
            why: For its file.
            bad: Remember that it was no good.

        Raises:
            UserError: It is still there.
        """
        self.claims.assert_own_place()
        self.claims.update(claim, state="releasing", word=why, bad=bad, watched_for="")
        self._marks[claim.name] = self.uptime()
        gone = self._end_pods(claim.host, why, {claim.pod_id} - {None}, claim)
        now = self._end_of(claim)
        self.claims.update(
            claim, released_at=now, state="released", word=why, bad=bad, usd=round(claim_cost(claim, now), 4)
        )
        return gone

    def release_orphan(self, host: str, pod: dict[str, Any], why: str) -> None:
        """Delete a pod that is no open claim's, and see it gone.

        Args:
            host: Its inventory name.
            pod: The pod, from RunPod.
            why: In words.

        Raises:
            UserError: It is still there.
        """
        self.claims.assert_own_place()
        self._end_pods(host, why, {pod["id"]})

    def _end_pods(self, host: str, why: str, ids: set[Any], claim: Optional[Claim] = None) -> bool:
        """Delete pods until none is left: an answer of 204 alone proves nothing.

        Args:
            host: Their inventory name.
            why: In words.
            ids: Those that are known.
            claim: Whose name others may have, that were or will be listed late.

        Returns:
            Whether there was one.

        Raises:
            UserError: One is still there.
        """
        deleted: set[Any] = set()
        trouble: dict[Any, str] = {}
        pause, began = _POLL, self.uptime()
        left = set(ids)
        while True:
            for pod_id in sorted(left):
                self._delete(pod_id, deleted, trouble)
            if claim and claim.asked_at:
                named = {pod["id"] for pod in self.api.list_pods() if pod["name"] == claim.name}
                for pod_id in sorted(named - ids):
                    self._delete(pod_id, deleted, trouble)
                    began = self.uptime()
                ids = ids | named
            left = {pod_id for pod_id in ids if self._is_there(pod_id, trouble)}
            if not left and (not claim or self._none_to_come(claim, ids, deleted)):
                return bool(deleted)
            if left and self.uptime() - began > _GONE_WAIT:
                why_not = "; ".join(sorted({trouble.get(pod_id, "RunPod still shows it") for pod_id in left}))
                cost = f" at {claim.usd_per_hour:.2f} USD/h" if claim and claim.usd_per_hour else ""
                raise UserError(
                    f"{host}: pod {', '.join(sorted(left))} could not be released ({why}): {why_not}. It goes on "
                    f"costing{cost} until it is gone. playbooks/reap.yml -e confirm=true tries again; if that does not "
                    "help, terminate it in RunPod's console"
                )
            self.sleep(pause)
            pause = min(2 * pause, _POLL_LATER)

    def _delete(self, pod_id: str, deleted: set[Any], trouble: dict[Any, str]) -> None:
        try:
            if self.api.delete_pod(pod_id):
                deleted.add(pod_id)
        except ApiError as error:
            trouble[pod_id] = str(error)

    def _is_there(self, pod_id: str, trouble: dict[Any, str]) -> bool:
        try:
            return self.api.get_pod(pod_id) is not None
        except ApiError as error:
            trouble[pod_id] = str(error)
            return True  # as far as is known

    def _none_to_come(self, claim: Claim, ids: set[Any], deleted: set[Any]) -> bool:
        """Tell whether no pod can appear any more under the name of a claim that is released."""
        if claim.unclear and not ids:
            return self._settled(claim)  # an order that got no clear answer may still bring one
        # A pod that nobody has seen yet is unknown to RunPod for a while, too.
        return claim.seen or ids <= deleted or self._settled(claim)


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
