"""A pod from its order to its release, step by step: claimed before it is ordered, and never ordered twice."""

from __future__ import annotations

import re
import time
from typing import Any, Callable, Optional

from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.pods import costs
from ansible.module_utils.lora_forge.pods.claims import Claims, claim_cost, parse_name, parse_time, retention_notice
from ansible.module_utils.lora_forge.pods.costs import Offer
from ansible.module_utils.lora_forge.pods.runpod import ApiError, RunPod, ssh_address, without_environment
from ansible.module_utils.lora_forge.pods.spec import PodSpec

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


class Pods:
    """Brings a declared pod about, step by step; everything it has to remember is in the claim.

    Args:
        api: RunPod.
        claims: This checkout's.
        closed: Why a pod cannot be reached by SSH yet, or None: ``closed(pod, claim)``.
        now: The time in epoch seconds.
        sleep: Waits, in seconds.
    """

    def __init__(
        self,
        api: RunPod,
        claims: Claims,
        closed: Callable[[dict[str, Any], dict[str, Any]], Optional[str]],
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self.api, self.claims, self.closed, self.now, self.sleep = api, claims, closed, now, sleep
        self.done: list[str] = []  # what was given up on the way, in sentences

    def advance(self, wanted: PodSpec, seconds: float, since: str = "") -> dict[str, Any]:
        """Go on towards a pod that answers, until there is something to tell, or for so long at most.

        Args:
            wanted: The pod.
            seconds: The longest wait.
            since: The ``word`` that was told already.

        Returns:
            phase (waiting for capacity, booting, ready), word, pod, claim, and done: sentences on what was given up.

        Raises:
            UserError: It cannot be had. Nothing is left that costs money and is not claimed.
        """
        until = self.now() + seconds
        while True:
            with self.claims.locked(wanted.host):
                found = self.step(wanted)
            if found["phase"] == "ready" or found["word"] != since or self.done or self.now() >= until:
                return found | {"done": self.done}
            age = self.now() - (found["claim"]["asked_at"] or self.now())
            self.sleep(min(max(_POLL, min(age / 15, _POLL_LATER)), max(0.1, until - self.now())))

    def step(self, wanted: PodSpec) -> dict[str, Any]:
        claim = self.claims.open(wanted.host) or self.adopt(wanted)
        if wanted.find_only and not (claim and claim["pod_id"]):
            raise UserError(f"{wanted.host} is not rented: nothing of it runs. train.yml orders it")
        claim = claim or self.make(wanted)
        if self.now() - (claim["wanted_at"] or 0) > _WANTED_EVERY:
            self.claims.write(claim, wanted_at=self.now())
        if claim["state"] == "waiting" and self.now() - claim["asked_at"] < RETRY:
            return progress_message("waiting", claim["word"], None, claim)
        if claim["asked_at"] and self.now() - claim["asked_at"] > 10 * RETRY:
            self.claims.write(claim, waiting_since=None)  # nobody has been waiting since
        if set(wanted.runs) != set(claim["runs"]):
            claim = self.claims.write(claim, runs=sorted({*claim["runs"], *wanted.runs}), output=wanted.output)
        pod = self.find(claim)
        if pod is None:
            if claim["pod_id"] and self.now() - claim["asked_at"] < SETTLE:
                return progress_message("booting", "it is ordered, and not in RunPod's list yet", None, claim)
            if wanted.find_only:
                raise UserError(f"{wanted.host}: pod {claim['pod_id']} is gone. train.yml orders another one")
            if claim["pod_id"]:
                self.lost(claim)
                claim = self.make(wanted)
            elif claim["state"] == "asked" and self.now() - claim["asked_at"] < SETTLE:
                return progress_message("ordering", "the order got no clear answer; looking for its pod", None, claim)
            return self.order(wanted, claim)
        return self.boot(wanted, claim, pod)

    def make(self, wanted: PodSpec, **known: Any) -> dict[str, Any]:
        return self.claims.make(wanted.host, wanted.runs, self.now(), output=wanted.output, **known)

    def adopt(self, wanted: PodSpec) -> Optional[dict[str, Any]]:
        """A claim to a pod of this owner and host that is there though no claim is: from another controller, say."""
        pod = self.unclaimed(wanted.host)
        if not pod:
            return None
        self.done.append(f"{pod['id']} is there already; taken over")
        # Ready, as far as is known: it may hold a training, and is not released when it does not answer.
        now = self.now()
        return self.make(wanted, **self.facts(wanted, pod), state="ordered", boot_since=now, ready_at=now)

    def unclaimed(self, host: str) -> Optional[dict[str, Any]]:
        """A pod of this owner and host to which no claim is known."""
        closed = {claim["name"] for claim in self.claims.all()}
        mine = [pod for pod in self.api.list_pods() if parse_name(pod["name"]) == (self.claims.owner, host)]
        return next((pod for pod in mine if pod["name"] not in closed), None)

    def facts(self, wanted: PodSpec, pod: dict[str, Any]) -> dict[str, Any]:
        """What a claim holds of a pod that is taken over."""
        born = parse_time(pod.get("createdAt")) or self.now()
        deadline = pod.get("deadline") or born + wanted.max_hours * 3600
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

    def find(self, claim: dict[str, Any]) -> Optional[dict[str, Any]]:
        """A claim's pod, by its unique name, or its id. Of twins (an order that was thought lost) one stays."""
        if not claim["asked_at"]:
            return None
        twins = list({pod["id"]: pod for pod in self.api.list_pods() if pod["name"] == claim["name"]}.values())
        if claim["pod_id"] and not twins:  # a list may lag behind
            twins = [pod for pod in [self.api.get_pod(claim["pod_id"])] if pod]
        twins.sort(key=lambda pod: (pod["id"] != claim["pod_id"], pod.get("createdAt") or ""))
        for twin in twins[1:]:
            self.api.delete_pod(twin["id"])
            self.done.append(f"{twin['id']} was ordered twice; the second one is released")
        if not twins:
            return None
        pod = twins[0]
        rate = float(pod.get("cost") or 0) or claim["usd_per_hour"]  # 0 while it is stopped
        if claim["pod_id"] != pod["id"]:
            self.claims.write(claim, pod_id=pod["id"], state="ordered")
        if claim["usd_per_hour"] != rate:
            self.claims.write(claim, usd_per_hour=rate)
        return pod

    def lost(self, claim: dict[str, Any]) -> None:
        """A pod is gone that this checkout has not released.

        Raises:
            UserError: Its leash ended it: another one would go the same way.
        """
        ended = min(self.now(), claim["deadline"] or self.now())  # it cannot have cost more than until then
        self.claims.write(
            claim, released_at=ended, state="gone", word="it was gone", usd=round(claim_cost(claim, ended), 4)
        )
        if claim["deadline"] and self.now() > claim["deadline"]:
            raise UserError(
                f"{claim['host']}: its leash ended the pod after "
                f"{costs.hours_text((ended - claim['asked_at']) / 3600)}, "
                f"{claim_cost(claim, self.now()):.2f} USD. Checkpoints that were fetched are kept; for more time: "
                "-e pod_max_hours=…, and -e pod_max_usd=… where that is set. The same command orders another pod"
            )
        self.done.append(f"pod {claim['pod_id']} of {claim['host']} is gone, by somebody else's hand or RunPod's")

    def offers(self, wanted: PodSpec) -> list[Offer]:
        """What may be ordered now, in order.

        Raises:
            UserError: Nothing ever, or not within the caps.
        """
        catalogues = {cloud: self.api.list_gpus(cloud, wanted.count, wanted.min_cuda) for cloud in wanted.clouds}
        return costs.find_offers(
            catalogues, wanted.gpus, wanted.count, wanted.max_usd_per_hour, wanted.memory_gib, wanted.data_centers,
            wanted.floor_gib, wanted.classes,
        )  # fmt: skip

    def fitting(self, wanted: PodSpec, spent: float) -> list[tuple[Offer, float]]:
        """The offers on which the training fits into the caps, in order, each with the hours that its pod may live.

        Raises:
            UserError: There is none.
        """
        found, first = [], ""
        for offer in self.rotated(self.offers(wanted), wanted.host):
            estimate = wanted.estimate(offer.gpu)
            hours = costs.allowed_hours(estimate, offer.usd_per_hour, wanted.max_hours, wanted.max_usd, spent)
            if hours > 0 and (estimate is None or estimate <= hours):
                found.append((offer, hours))
                continue
            before = f"{spent:.2f} USD are spent on it; " if spent else ""
            need = f"about {costs.hours_text(estimate or 0)} and {(estimate or 0) * offer.usd_per_hour:.2f} USD"
            first = first or (
                f"{wanted.host}: {before}{offer.gpu} at {offer.usd_per_hour:.2f} USD/h would take {need}; "
                f"pod_max_hours is {wanted.max_hours:g}, pod_max_usd {wanted.max_usd:g}. Nothing was ordered"
            )
        if not found:
            raise UserError(first)
        return found

    def predict(self, wanted: PodSpec) -> dict[str, Any]:
        """What :meth:`advance` would do, without doing it.

        Returns:
            ``pod`` where it is there; otherwise ``offer`` (the first to be asked for), ``hours`` (estimated, or None),
            ``allowance`` (hours until its leash ends it).

        Raises:
            UserError: It cannot be ordered like this.
        """
        claim = self.claims.open(wanted.host)
        if claim and claim["asked_at"]:
            pod = next((pod for pod in self.api.list_pods() if pod["name"] == claim["name"]), None)
            if pod:
                return {"pod": pod, "claim": claim}
        elif not claim and (self.claims.folder / "owner").exists():
            pod = self.unclaimed(wanted.host)
            if pod:
                return {"pod": pod, "claim": {**self.facts(wanted, pod), "billed_usd": None, "released_at": None}}
        offer, hours = self.fitting(wanted, self.claims.spent(wanted.runs, self.now()))[0]
        return {"pod": None, "offer": offer, "hours": wanted.estimate(offer.gpu), "allowance": hours}

    def order(self, wanted: PodSpec, claim: dict[str, Any]) -> dict[str, Any]:
        """Ask for each candidate once; when all are out of stock, that is said, and the caller asks again."""
        if claim["waiting_since"] and self.now() - claim["waiting_since"] > wanted.order_timeout:
            words = claim["word"]
            self.claims.write(claim, released_at=self.now(), state="given up", word="no capacity")
            raise UserError(
                f"{wanted.host}: {words}, within {wanted.order_timeout:.0f} s. Nothing is rented. Name more GPUs in "
                "pod_gpus, another cloud, or wait longer: -e pod_order_timeout=…"
            )
        spent = self.claims.spent(wanted.runs, self.now(), claim["name"])
        refused: list[ApiError] = []
        for offer, hours in self.fitting(wanted, spent):
            now = self.now()
            # On disk before the order: whatever happens from here on, the pod is found again by its name.
            self.claims.write(
                claim, state="asked", asked_at=now, gpu=offer.gpu, cloud=offer.cloud, usd_per_hour=offer.usd_per_hour,
                allowance_s=round(hours * 3600), deadline=round(now + hours * 3600), boot_since=now,
            )  # fmt: skip
            try:
                pod = self.api.create_pod(self.request(wanted, claim, offer))
            except ApiError as error:
                if error.unclear:
                    return progress_message(
                        "ordering", f"{error.status or 'no answer'}; looking for its pod", None, claim
                    )
                if error.status not in (400, 403):
                    self.claims.write(claim, released_at=self.now(), state="given up", word=str(error))
                    raise
                refused.append(error)
                continue
            price = float(pod.get("cost") or offer.usd_per_hour)
            self.claims.write(claim, state="ordered", pod_id=pod["id"], usd_per_hour=price)
            if price > wanted.max_usd_per_hour or (wanted.max_usd and price > offer.usd_per_hour * costs.TOLERANCE):
                self.release(claim, f"it costs {price:.2f} USD/h, more than RunPod's catalogue said")
                raise UserError(f"{wanted.host}: {offer.gpu} was offered at {offer.usd_per_hour:.2f} USD/h, but the "
                                 f"pod cost {price:.2f}; it was released at once")  # fmt: skip
            words = f"{offer.gpu}, {offer.cloud}, {price:.2f} USD/h: ordered" + (offer.doubt and f"; {offer.doubt}")
            return progress_message("booting", words, pod, claim)
        if all(error.status == 403 for error in refused) or not any(NO_CAPACITY.search(e.detail) for e in refused):
            # Every candidate fails alike: that is the request, or the account, not the stock.
            rule = next((error for error in refused if error.status == 400), refused[-1])
            self.claims.write(claim, released_at=self.now(), state="given up", word=rule.detail)
            raise rule
        detail = next(error.detail for error in refused if NO_CAPACITY.search(error.detail))
        word = f"no capacity for {', '.join(wanted.gpus)} ({detail.rstrip('.')})"
        self.claims.write(claim, state="waiting", word=word, waiting_since=claim["waiting_since"] or self.now())
        return progress_message("waiting", word, None, claim)

    def request(self, wanted: PodSpec, claim: dict[str, Any], offer: Offer) -> dict[str, Any]:
        """The create request."""
        gpu: dict[str, Any] = {"id": offer.gpu, "count": wanted.count}  # without the count it is refused
        if wanted.min_cuda:
            gpu["minCudaVersion"] = wanted.min_cuda
        leash = {"LORA_FORGE_DEADLINE": str(claim["deadline"]), "LORA_FORGE_ALLOWANCE": str(claim["allowance_s"])}
        made = {**wanted.request, "name": claim["name"], "cloud": offer.cloud, "gpu": gpu}
        made["env"] = {**wanted.request["env"], **leash}
        return made | ({"dataCenterIds": wanted.data_centers} if wanted.data_centers else {})

    def rotated(self, offers: list[Offer], host: str) -> list[Offer]:
        """The offers, those last that gave a bad pod a short while ago."""
        bad = [c["gpu"] for c in self.claims.all() if c["host"] == host and self.recently_bad(c)]
        return sorted(offers, key=lambda offer: bad.count(offer.gpu))

    def recently_bad(self, claim: dict[str, Any]) -> bool:
        return bool(claim["bad"]) and self.now() - (claim["released_at"] or 0) < BAD_FOR

    def boot(self, wanted: PodSpec, claim: dict[str, Any], pod: dict[str, Any]) -> dict[str, Any]:
        """See how far a pod is; give it up when it is no good."""
        if pod["status"] in ("EXITED", "ERROR"):  # started again it may come back without its GPU
            persistent = (pod.get("mounts") or {}).get("persistent")
            if wanted.find_only or (claim["ready_at"] and persistent):
                raise UserError(
                    f"{wanted.host} is {pod['status']}: somebody stopped it, or the balance is used up. What it holds "
                    f"may be wanted, so it is not replaced. {retention_notice(claim)}"
                )
            return self.another(wanted, claim, pod, f"it is {pod['status']}")
        ssh = ssh_address(pod)
        if (
            ssh
            and not claim["ready_at"]
            and not wanted.find_only
            and any(self.recently_bad(c) and c["machine"] == ssh["host"] for c in self.claims.all())
        ):
            return self.another(wanted, claim, pod, f"it is the bad machine {ssh['host']} again", counts=False)
        mapped = bool(ssh) and pod["status"] == "RUNNING"
        why = (self.closed(pod, claim) if mapped else f"it is {pod['status']}, and has no SSH port yet") or ""
        if not why:
            if claim["state"] != "ready" or claim["boot_since"]:
                ready_at = claim["ready_at"] or self.now()
                self.claims.write(
                    claim, state="ready", boot_since=None, ready_at=ready_at, machine=ssh["host"], word=""
                )
            return progress_message("ready", "", pod, claim)
        if not claim["boot_since"]:  # it was ready once: its container, or the network, went away
            self.claims.write(claim, boot_since=self.now())
        if self.now() - claim["boot_since"] > wanted.boot_timeout:
            if (
                claim["ready_at"] or wanted.find_only
            ):  # what it holds may be worth more than it costs: that is the user's to say
                raise UserError(
                    f"{wanted.host} has not answered SSH for {wanted.boot_timeout:.0f} s, though RunPod says "
                    f"{pod['status']} ({why}). {retention_notice(claim)}"
                )
            return self.another(wanted, claim, pod, f"it did not answer SSH within {wanted.boot_timeout:.0f} s ({why})")
        return progress_message("booting", why, pod, claim)

    def another(
        self, wanted: PodSpec, claim: dict[str, Any], pod: dict[str, Any], why: str, counts: bool = True
    ) -> dict[str, Any]:
        """Release a pod that is no good, and claim another one.

        Args:
            wanted: What is wanted.
            claim: Its claim.
            pod: The pod.
            why: In words.
            counts: Whether it is one of the attempts.

        Raises:
            UserError: There were enough.
        """
        claim["machine"] = ssh_address(pod).get("host") or claim["machine"]
        self.release(claim, why, bad=counts and not claim["ready_at"])
        words = f"pod {claim['pod_id']} ({claim['gpu']}) is released: {why}"
        self.done.append(words)
        too_long = self.now() - claim["began_at"] > wanted.order_timeout
        if not claim["ready_at"] and (claim["attempt"] >= wanted.attempts if counts else too_long):
            raise UserError(
                f"{wanted.host}: {words}. It was number {claim['attempt']} of {wanted.attempts}; nothing is rented any "
                "longer. An image without sshd does not answer SSH; if it is RunPod's machines, try other pod_gpus"
            )
        chain = {} if claim["ready_at"] else {"began_at": claim["began_at"], "attempt": claim["attempt"] + counts}
        following = self.make(wanted, **chain)
        return progress_message("ordering", "another one", None, following)

    def release(self, claim: dict[str, Any], why: str, bad: bool = False) -> bool:
        """Delete a claim's pod and close the claim; True when there was a pod.

        Args:
            claim: The claim.
            why: For its file.
            bad: Remember the machine.
        """
        found = bool(claim["pod_id"]) and self.api.delete_pod(claim["pod_id"])
        while claim["asked_at"]:
            pods = [
                pod for pod in self.api.list_pods() if pod["name"] == claim["name"] and pod["id"] != claim["pod_id"]
            ]
            for pod in pods:
                found = self.api.delete_pod(pod["id"]) or found
            # An order that got no clear answer may still bring a pod.
            if claim["state"] != "asked" or found or self.now() - claim["asked_at"] > SETTLE:
                break
            self.sleep(_POLL)
        now = self.now()
        self.claims.write(
            claim, released_at=now, state="released", word=why, bad=bad, usd=round(claim_cost(claim, now), 4)
        )
        return found


def progress_message(phase: str, word: str, pod: Optional[dict[str, Any]], claim: dict[str, Any]) -> dict[str, Any]:
    """What :meth:`Pods.advance` returns."""
    return {"phase": phase, "word": word, "pod": without_environment(pod) if pod else None, "claim": dict(claim)}


def pod_budget(wanted: PodSpec, claim: dict[str, Any], claims: Claims, now: float) -> dict[str, Any]:
    """What watching needs to keep within the caps; see :func:`money.breach` and :func:`money.renewal`."""
    return {
        "usd_per_hour": claim["usd_per_hour"],
        "spent": round(claims.spent(wanted.runs, now, claim["name"]), 4),
        "since": claim["asked_at"],
        "max_usd": wanted.max_usd,
        "max_hours": wanted.max_hours,
        "deadline": claim["deadline"],
        "pod": claim["pod_id"],
        "pods": [one["pod_id"] for one in claims.all() if one["pod_id"] and set(one["runs"]) & set(wanted.runs)],
        "claim": str(claims.path(claim["name"])),
    }
