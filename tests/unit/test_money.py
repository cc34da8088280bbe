"""Nothing goes on costing money: a hostile RunPod, a controller that dies anywhere, and a clock that jumps."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import shutil
import tempfile
from typing import Any
from unittest import mock

from ansible.module_utils.lora_forge import rundir
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.pods import desired_state, watching
from ansible.module_utils.lora_forge.pods.claims import Claims, list_account_pods, parse_name, with_unlisted
from ansible.module_utils.lora_forge.pods.lifecycle import PodManager
from ansible.module_utils.lora_forge.pods.runpod import Answer, NoAnswer
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from wire import CAPACITY, WANTED, Clock, Cloud, answer, problem

CAP = 12.0  # USD for all that a machine of rules rents
HOURLY = 0.86  # of what is ordered


class Died(BaseException):
    """The controller was killed here."""


class SetClock(Clock):
    """A clock whose hands somebody moves: what the controller reads, and what has passed."""

    def __init__(self) -> None:
        super().__init__()
        self.skew = 0.0

    def wall(self) -> float:
        return self.time + self.skew


class Account(Cloud):
    """An account whose answers are late, lost or untrue, with leashes on its pods and a bill of its own.

    Attributes:
        orders_fate: What becomes of the next orders, see ``fate``.
        delete_late: Seconds that a pod lives on after its DELETE was answered with 204.
        delete_fails: How many deletes are refused.
        die_in: After so many requests the controller dies; before the request has an effect where ``die_before``.
    """

    def __init__(self, clock: SetClock):
        super().__init__(clock)
        self.orders_fate: list[dict[str, Any]] = []
        self.delete_late, self.delete_fails = 0.0, 0
        self.die_in, self.die_before = -1, False
        self.leashed = True
        self.second: list[str] = []  # orders that went out while a pod was there

    def __call__(
        self, method: str, url: str, headers: dict[str, str], body: bytes | None, seconds: float, stream: bool
    ) -> Answer:
        self.settle()
        self.die_in -= 1
        if self.die_in == 0 and self.die_before:
            raise Died
        try:
            return self.reply(method, url, body)
        finally:
            if self.die_in == 0:
                raise Died

    def settle(self) -> None:
        """Let leashes and late deletes have their effect."""
        for pod in self.live:
            ends = [pod["dies"]] if "dies" in pod else []
            if self.leashed and pod["status"] != "EXITED" and "LORA_FORGE_DEADLINE" in pod["env"]:
                leash = pod["born"] + float(pod["env"]["LORA_FORGE_ALLOWANCE"])
                ends.append(min(float(pod["env"]["LORA_FORGE_DEADLINE"]), leash))
            if ends and min(ends) <= self.clock.now():
                pod |= {"status": "TERMINATED", "ended": max(min(ends), pod["born"])}

    def reply(self, method: str, url: str, body: bytes | None) -> Answer:
        path = url.partition("/v2/")[2].partition("?")[0]
        if method == "GET" and path == "pods":
            shown = [pod for pod in self.live if self.clock.now() >= pod.get("listed", 0)]
            return answer(200, {"pods": [self.view(pod) for pod in shown]})
        asked = next((pod for pod in self.live if path == f"pods/{pod['id']}"), None)
        if asked and self.clock.now() < asked.get("known", 0):
            return problem(404, "pod not found")
        if method == "DELETE":
            if self.delete_fails:
                self.delete_fails -= 1
                return problem(400, "it cannot be deleted now")
            if asked:
                asked.setdefault("dies", self.clock.now() + self.delete_late)
                self.settle()
                return answer(204)
        return super().reply(method, url, body)

    def create(self, body: dict[str, Any]) -> Answer:
        self.orders.append(body)
        if self.live:
            self.second.append(f"{body['name']} was ordered while {[pod['id'] for pod in self.live]} was there")
        fate = self.orders_fate.pop(0) if self.orders_fate else {}
        pod = None
        if fate.get("made", True):
            price = fate.get("price", HOURLY)
            pod = self.add(body["name"], body, price=price)
        self.clock.sleep(fate.get("slow", 0.0))
        if pod:
            now = self.clock.now()
            pod |= {"listed": now + fate.get("listed", 0.0), "known": now + fate.get("known", 0.0)}
            pod["priced"] = pod["born"] + fate.get("priced", 0.0)
        if fate.get("answer") == "lost":
            raise NoAnswer("connection reset by peer")
        if fate.get("answer") == "error":
            return problem(fate.get("status", 504), "oops")
        return answer(201, self.view(pod)) if pod else CAPACITY

    def view(self, pod: dict[str, Any]) -> dict[str, Any]:
        shown = super().view(pod)
        return shown if self.clock.now() >= pod.get("priced", 0) else {**shown, "cost": 0.0}

    def usd(self, most: float) -> float:
        """Return what all pods have cost in truth, but for those that cost more than ``most`` an hour.

        While RunPod does not say that a pod is dear, and nobody is there to ask, its leash goes by the catalogue.
        """
        self.settle()
        ends = [(pod, pod.get("ended", self.clock.now())) for pod in self.made if pod["price"] <= most]
        return sum((end - pod["born"]) / 3600 * pod["price"] for pod, end in ends)


def fate(made: bool, how: str, slow: float, listed: float, known: float, price: float, priced: float) -> dict[str, Any]:
    """Make what becomes of an order. What got no clear answer may be listed a while after that, and is then known."""
    listed, known = (min(listed, 25.0), 0.0) if how else (listed, known)
    return {"made": made, "answer": how, "slow": slow, "listed": listed, "known": known, "price": price,
            "priced": priced}  # fmt: skip


FATES = st.builds(
    fate,
    made=st.sampled_from([True, True, False]),
    how=st.sampled_from(["", "lost", "error"]),
    slow=st.sampled_from([0.0, 33.0, 40.0]),
    listed=st.sampled_from([0.0, 5.0, 25.0, 60.0]),
    known=st.sampled_from([0.0, 20.0]),
    price=st.sampled_from([HOURLY, HOURLY, 9.0]),
    priced=st.sampled_from([0.0, 80.0, 1e9]),
)


class Money(RuleBasedStateMachine):
    """One host of one checkout; every step of a controller may be its last."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = SetClock()
        self.account = Account(self.clock)
        self.folder = pathlib.Path(tempfile.mkdtemp())
        self.patches = contextlib.ExitStack()
        self.patches.enter_context(mock.patch("os.fsync", return_value=None))
        defaults = (self.clock.wall, self.clock.sleep, self.clock.now)
        self.patches.enter_context(mock.patch.object(watching.Clock.__init__, "__defaults__", defaults))
        self.patches.enter_context(mock.patch.object(rundir, "write_json", self.write))
        self.writes_left, self.real_write = -1, rundir.write_bytes
        self.wanted = dataclasses.replace(WANTED, max_usd=CAP, boot_timeout=60.0, gpus=["L40S"])
        self.shut = False
        self.slack = 0.5  # USD by which the cap may be missed
        self.said: list[str] = []

    def write(self, path: pathlib.Path, data: Any, mode: int = 0o644) -> None:
        """Write as ever, or die just before or after."""
        self.writes_left -= 1
        if self.writes_left == 1:
            raise Died
        self.real_write(path, (json.dumps(data, indent=1, sort_keys=True) + "\n").encode(), mode)
        if self.writes_left == 0:
            raise Died

    @property
    def claims(self) -> Claims:
        return Claims(self.folder / "pods")

    @contextlib.contextmanager
    def controller(self) -> Any:
        """Act as a process that may be killed, or end with a sentence."""
        try:
            yield
        except Died:
            pass
        except UserError as error:
            self.said.append(str(error))
        self.account.die_in = self.writes_left = -1

    def manager(self) -> PodManager:
        return PodManager(self.account.client(), self.claims, lambda pod, claim: "refused" if self.shut else None)

    def known_pod(self) -> dict[str, Any] | None:
        """Return the pod whose id the open claim holds."""
        claim = self.claims.find_open("pod-1")
        return next((pod for pod in self.account.live if claim and pod["id"] == claim.pod_id), None)

    # What happens

    @rule(late=st.sampled_from([0.0, 5.0, 40.0, 200.0]), fails=st.integers(0, 3))
    def deletes(self, late, fails):
        """Decide how releases go from now on."""
        self.account.delete_late, self.account.delete_fails = late, fails

    @rule(hours=st.sampled_from([-1.0, 1.0]))
    def clock_is_set(self, hours):
        """Put the controller's clock back or forward."""
        self.clock.skew += hours * 3600
        self.slack += HOURLY * 1.05  # of a pod that is seen by nobody meanwhile

    @rule(seconds=st.sampled_from([1.0, 20.0, 45.0, 600.0, 7200.0]))
    def nobody_is_there(self, seconds):
        """Let time pass."""
        self.clock.sleep(seconds)

    @rule(request=st.integers(1, 14), before=st.booleans())
    def dies_at_request(self, request, before):
        """Kill the next process at one of its requests."""
        self.account.die_in, self.account.die_before = request, before

    @rule(write=st.integers(1, 10))
    def dies_at_write(self, write):
        """Kill the next process just before or after one of its writes."""
        self.writes_left = write

    @precondition(lambda self: self.account.live)
    @rule(status=st.sampled_from(["EXITED", "ERROR", "TERMINATED"]))
    def pod_ends(self, status):
        """End a pod by somebody else's hand."""
        pod = self.account.live[-1]
        pod |= {"status": status} | ({"ended": self.clock.now()} if status == "TERMINATED" else {})

    @precondition(lambda self: self.known_pod())
    @rule()
    def deadline_passes(self):
        """Let the deadline pass over a pod that somebody stopped, leash and all, and that no list has any more."""
        claim = self.claims.find_open("pod-1")
        self.known_pod().update(status="EXITED", listed=9e9, ended=self.clock.now())
        self.clock.sleep(max(0.0, (claim.deadline or 0) + 60 - self.clock.wall()))

    # What people do

    @initialize(fate=FATES)
    def first_train(self, fate):
        """Begin with an order, so that each story has one."""
        self.train_with([fate], 150.0, False)

    @rule(fates=st.lists(FATES, max_size=3), seconds=st.sampled_from([0.0, 150.0, 150.0, 900.0]), shut=st.booleans())
    def train(self, fates, seconds, shut):
        """Go on towards a pod, as a command does: one process after the other."""
        self.train_with(fates, seconds, shut)

    def train_with(self, fates: list[dict[str, Any]], seconds: float, shut: bool) -> None:
        account, before = self.account, len(self.account.orders)
        claim = self.claims.find_open("pod-1")
        late = claim and claim.pod_id and claim.state != "releasing" and self.clock.wall() > (claim.deadline or 9e9)
        account.orders_fate, self.shut = list(fates), shut
        until, since, working = self.clock.now() + seconds, "", ""
        with self.controller():
            while True:
                left = max(0.0, min(20.0, until - self.clock.now()))
                progress = self.manager().advance(self.wanted, left, since, working)
                since, working = progress.message, progress.claim.name
                if progress.phase == "ready":
                    price = next(pod["price"] for pod in account.made if pod["id"] == progress.pod["id"])
                    assert price <= self.wanted.max_usd_per_hour, "it trains on a pod that is too dear"
                if progress.phase == "ready" or self.clock.now() >= until:
                    break
        account.orders_fate = []
        assert not late or len(account.orders) == before, "a deadline that has passed led to another order"
        assert len(account.orders) - before <= 2 * self.wanted.attempts, "one command orders without end"

    def absent(self, **given: Any) -> None:
        options = {
            "state_dir": str(self.folder / "pods"), "owner": "", "state": "absent", "host": "pod-1", "id": "",
            "reason": "by hand", "bad": False, "unused": False, **given,
        }  # fmt: skip
        desired_state.bring_about(options, False, self.account.client())

    @rule()
    def release(self):
        """Release the pod by its name."""
        with self.controller():
            self.absent()

    @rule()
    def reap(self):
        """Release what is for nothing."""
        with self.controller():
            claims = self.claims
            api, known = self.account.client(), claims.list_all()
            pods = with_unlisted(api.list_pods(), known, api.get_pod)
            rows = list_account_pods(pods, known, claims.owner, self.clock.wall())
            for row in rows:
                if row["mine"] and not row["claimed"]:
                    with contextlib.suppress(UserError):  # a loop goes on to the next one
                        self.absent(id=row["id"], unused=True)

    # What must be true

    @invariant()
    def every_pod_is_claimed(self):
        self.account.settle()
        claims = {claim.name: claim for claim in self.claims.list_all()}
        for pod in self.account.live:
            assert parse_name(pod["name"]) == (self.claims.owner, "pod-1")
            assert pod["name"] in claims, "rented, and nobody knows it"
            claim = claims[pod["name"]]
            assert not claim.released_at or claim.state == "given up", f"rented, and its claim says {claim.state}"

    @invariant()
    def no_order_goes_out_before_the_one_before_is_none(self):
        assert self.account.second == []

    @invariant()
    def it_stays_within_the_cap(self):
        assert self.account.usd(HOURLY) <= CAP + self.slack

    def teardown(self) -> None:
        try:
            account = self.account
            account.die_in = self.writes_left = -1
            account.leashed, account.delete_late, account.delete_fails = False, 0.0, 0
            account.orders_fate.clear()
            for pod in account.live:
                pod.pop("dies", None)
            self.clock.sleep(3 * 86400)
            self.reap()
            assert account.live == [], f"reap leaves what is for nothing: {self.said}"
        finally:
            self.patches.close()
            shutil.rmtree(self.folder)


Money.TestCase.settings = settings(
    max_examples=80, stateful_step_count=14, derandomize=True, deadline=None, database=None,
    suppress_health_check=list(HealthCheck), print_blob=False,
)  # fmt: skip
TestMoney = Money.TestCase
