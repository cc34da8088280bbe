"""A pod from its order on, step by step: claimed before it is ordered, and never ordered twice."""

from __future__ import annotations

import dataclasses
import re
from typing import Any, Callable, Optional

from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.json_record import JsonRecord
from ansible.module_utils.lora_forge.pods import costs
from ansible.module_utils.lora_forge.pods.claims import Claim, Claims, claim_cost, pod_price, retention_notice
from ansible.module_utils.lora_forge.pods.costs import Offer
from ansible.module_utils.lora_forge.pods.finding import Finder
from ansible.module_utils.lora_forge.pods.offers import Offers, is_capped, order_request
from ansible.module_utils.lora_forge.pods.release import Releaser
from ansible.module_utils.lora_forge.pods.runpod import ApiError, RunPod, ssh_address, ssh_problem, without_environment
from ansible.module_utils.lora_forge.pods.spec import PodSpec
from ansible.module_utils.lora_forge.pods.watching import POLL, POLL_LATER, Clock, Watch

PRICE_WAIT = 90.0  # seconds in which RunPod must say what a running pod costs
_WANTED_EVERY = 60.0  # seconds between two notes in a claim that its pod is wanted
RETRY = 15.0  # seconds between two rounds over all candidates when there is no capacity
PAUSE = 15.0  # seconds before the order after a pod that was no good; twice as many after the next one
_PAUSE_MOST = 240.0
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
        clock: What the time is; the controller's, where it is not given.
        wanted: Tells whether the command that wants the pod still lives.
    """

    def __init__(
        self,
        api: RunPod,
        claims: Claims,
        unreachable_reason: Callable[[dict[str, Any], Claim], Optional[str]],
        clock: Optional[Clock] = None,
        wanted: Callable[[], bool] = lambda: True,
    ):
        self.api, self.claims, self.unreachable_reason, self.wanted = api, claims, unreachable_reason, wanted
        self.notes: list[str] = []  # what was given up or taken over on the way, in sentences
        self.clock = clock or Clock()
        self.watch = Watch(claims, self.clock)
        self.finder = Finder(api, claims, self.clock, self.notes)
        self.offers = Offers(api, claims, self.clock)
        self.releaser = Releaser(api, claims, self.watch)
        self._working = ""  # the name of the claim that is worked for

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
        began = self.clock.uptime()
        while True:
            with self.claims.locked(spec.host):
                progress = self._step(spec)
            left = seconds - (self.clock.uptime() - began)
            if progress.phase == "ready" or progress.message != since or self.notes or left <= 0:
                return progress
            pause = max(POLL, min(self._age(progress.claim) / 15, POLL_LATER))
            self.clock.sleep(min(pause, max(0.1, left)))

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
            pod = self.finder.find_orphan(spec.host)
            if pod:
                return Prediction(pod, Claim(host=spec.host, **self.finder.claimable_facts(spec, pod)))
        offer, hours = self.offers.affordable(spec, self.claims.spent_on(spec.runs, self.clock.now()))[0]
        return Prediction(offer=offer, hours=spec.estimate(offer.gpu), allowed_hours=hours)

    def _progress(self, phase: str, message: str, pod: Optional[dict[str, Any]], claim: Claim) -> Progress:
        return Progress(phase, message, without_environment(pod) if pod else None, claim, self.notes)

    def _age(self, claim: Claim) -> float:
        """Return the seconds since a pod was asked for; 0 while it is not."""
        return self.clock.now() - (claim.asked_at or self.clock.now())

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
        if abs(self.clock.now() - claim.wanted_at) > _WANTED_EVERY:  # or the clock was set back
            self.claims.update(claim, wanted_at=self.clock.now())
        if claim.state in ("claimed", "waiting") and claim.pause_s:
            if self.watch.look(claim, "pause") < claim.pause_s:
                return self._progress("waiting", claim.word, None, claim)
            self.claims.update(claim, pause_s=0.0)
        if self._age(claim) > 10 * RETRY:
            self.claims.update(claim, waiting_since=None)  # nobody has been waiting since
        # A checkout that was moved has its output elsewhere.
        if set(spec.runs) - set(claim.runs) or (spec.runs and spec.output != claim.output):
            claim = self.claims.update(claim, runs=sorted({*claim.runs, *spec.runs}), output=spec.output)
        pod = self.finder.find_pod(claim, tidy=not spec.find_only)
        if pod:
            self._refuse_price(spec, claim)
            return self._check_boot(spec, claim, pod)
        if claim.pod_id or claim.state == "asked":
            settled = self.watch.settled(claim)
            if spec.find_only and (settled or claim.seen):
                raise UserError(f"{spec.host}: pod {claim.pod_id} is gone. train.yml orders another one")
            if not settled:
                if claim.pod_id and not claim.ready_at:
                    return self._progress("booting", "it is ordered, and not in RunPod's list yet", None, claim)
                if claim.pod_id:
                    return self._progress("booting", "RunPod does not know it any more; looking again", None, claim)
                return self._progress("ordering", "the order got no clear answer; looking for its pod", None, claim)
            if claim.pod_id or self.watch.ended_unseen(claim):
                return self._progress("ordering", "another one", None, self._follow_lost(spec, claim))
            if claim.lost_orders >= spec.attempts:
                self.claims.update(claim, released_at=self.clock.now(), state="given up", word="no clear answers")
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
        self.releaser.release(claim, claim.word, claim.bad)
        self.notes.append(f"pod {claim.pod_id} of {claim.host} is released at last: {claim.word}")

    def _open_claim(self, spec: PodSpec, **known: Any) -> Claim:
        claim = self.claims.open_claim(spec.host, spec.runs, self.clock.now(), output=spec.output, **known)
        failures = max(claim.attempt - 1, len(self.offers.bad_claims(spec.host)))
        if failures and not claim.pod_id:
            pause = min(PAUSE * 2 ** (failures - 1), _PAUSE_MOST)
            word = f"{failures} {'pods were' if failures > 1 else 'pod was'} no good; the next order in {pause:.0f} s"
            self.claims.update(claim, pause_s=pause, word=word)
        return claim

    def _adopt_orphan(self, spec: PodSpec) -> Optional[Claim]:
        """Claim a pod of this owner and host that is there though no claim is: from another controller, say."""
        pod = self.finder.find_orphan(spec.host)
        if not pod:
            return None
        self.notes.append(f"{pod['id']} is there already; taken over")
        # Ready, as far as is known: it may hold a training, and is not released when it does not answer.
        now = self.clock.now()
        return self._open_claim(
            spec, **self.finder.claimable_facts(spec, pod), state="ordered", boot_since=now, ready_at=now
        )

    def _follow_lost(self, spec: PodSpec, claim: Claim) -> Claim:
        """Close the claim to a pod that is gone though this checkout has not released it, and open the next one.

        Raises:
            UserError: Its leash ended it: another one would go the same way. Or there were enough.
        """
        now = self.watch.end_of(claim)
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
        ended = claim.released_at or self.clock.now()
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
        if price > spec.max_usd_per_hour or (is_capped(spec) and offered and price > offered * costs.TOLERANCE):
            self.releaser.release(claim, f"it costs {price:.2f} USD/h, more than RunPod's catalogue said")
            raise UserError(
                f"{spec.host}: {claim.gpu} was offered at {offered or spec.max_usd_per_hour:.2f} USD/h, but the pod "
                f"cost {price:.2f}; it was released at once"
            )

    def _order(self, spec: PodSpec, claim: Claim) -> Progress:
        """Ask for each candidate once; when all are out of stock, that is said, and the caller asks again."""
        if claim.waiting_since and self.clock.now() - claim.waiting_since > spec.order_timeout:
            shortage = claim.word
            self.claims.update(claim, released_at=self.clock.now(), state="given up", word="no capacity")
            raise UserError(
                f"{spec.host}: {shortage}, within {spec.order_timeout:.0f} s. Nothing is rented. Name more GPUs in "
                "pod_gpus, another cloud, or wait longer: -e pod_order_timeout=…"
            )
        spent = self.claims.spent_on(spec.runs, self.clock.now(), claim.name)
        refused: list[ApiError] = []
        alive = self.offers.alive(spec)
        for offer, hours in self.offers.affordable(spec, spent, claim.name):
            if not self.wanted():
                raise UserError(f"{spec.host}: the command that wanted a pod is gone; no pod is ordered")
            # On disk before the order: whatever happens from here on, the pod is found again by its name.
            self.offers.reserve(spec, claim, offer, hours, alive)
            try:
                pod = self.api.create_pod(order_request(spec, claim, offer))
            except ApiError as error:
                self.watch.mark(claim)  # from now on it may appear, not since it was asked for
                if error.unclear:
                    self.claims.update(claim, lost_at=self.clock.now(), lost_orders=claim.lost_orders + 1)
                    return self._progress(
                        "ordering", f"{error.status or 'no answer'}; looking for its pod", None, claim
                    )
                claim.unclear = False
                if error.status not in (400, 403):
                    self.claims.update(claim, released_at=self.clock.now(), state="given up", word=str(error))
                    raise
                refused.append(error)
                continue
            self.watch.mark(claim)
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
            self.claims.update(claim, released_at=self.clock.now(), state="given up", word=rule.detail)
            raise rule
        detail = next(error.detail for error in refused if NO_CAPACITY.search(error.detail))
        shortage = f"no capacity for {', '.join(spec.gpus)} ({detail.rstrip('.')})"
        self.claims.update(
            claim, state="waiting", word=shortage, waiting_since=claim.waiting_since or self.clock.now(), pause_s=RETRY,
            watched_for="",
        )  # fmt: skip
        return self._progress("waiting", shortage, None, claim)

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
            if self.watch.look(claim, "price") < PRICE_WAIT:
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
                ready_at = claim.ready_at or self.clock.now()
                self.claims.update(
                    claim, state="ready", boot_since=None, ready_at=ready_at, machine=ssh["host"], word=""
                )
            return self._progress("ready", "", pod, claim)
        boot_since = claim.boot_since
        # It was ready once: its container, or the network, went away. Or the clock was set back.
        if not boot_since or boot_since > self.clock.now():
            boot_since = self.clock.now()
            self.claims.update(claim, boot_since=boot_since)
        if self.clock.now() - boot_since > spec.boot_timeout:
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
        self.releaser.release(claim, why, bad=bad and not claim.ready_at)
        if claim.deadline and (claim.released_at or 0) > claim.deadline:
            raise self._leash_error(claim)
        note = f"pod {claim.pod_id} ({claim.gpu}) is released: {why}"
        self.notes.append(note)
        return self._progress("ordering", "another one", None, self._next_attempt(spec, claim, note))
