"""What all pods of an owner may cost in a day and a month: what counts, what is left, and who is refused."""

from __future__ import annotations

import dataclasses
import multiprocessing
import pathlib
import time
from typing import Any

import pytest
import rundir
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.pods import spending, watching
from ansible.module_utils.lora_forge.pods.claims import Claim, Claims
from ansible.module_utils.lora_forge.pods.lifecycle import PodManager
from ansible.module_utils.lora_forge.pods.runpod import NoAnswer
from ansible.module_utils.lora_forge.pods.spending import Caps
from wire import CAPACITY, WANTED, Clock, Cloud, gpu, load

ROOT = pathlib.Path(__file__).resolve().parents[2]

H = 3600.0
NOW = 1_764_000_000.0  # 2025-11-24 16:00 UTC
MIDNIGHT = NOW + 8 * H
MONTH = 1_764_547_200.0  # 2025-12-01 00:00 UTC


def pod(**changes: Any) -> Claim:
    known = {"name": "n", "owner": "cafe01", "pod_id": "p", "state": "ready", "usd_per_hour": 2.0, "asked_at": NOW - H}
    return Claim(**{**known, "deadline": NOW + 2 * H, **changes})


@pytest.mark.parametrize(
    ("kind", "at", "label", "start", "end"),
    [
        ("day", NOW, "2025-11-24", NOW - 16 * H, MIDNIGHT),
        ("day", MIDNIGHT, "2025-11-25", MIDNIGHT, MIDNIGHT + 24 * H),
        ("month", NOW, "2025-11", MONTH - 30 * 24 * H, MONTH),
        ("month", MONTH - 0.001, "2025-11", MONTH - 30 * 24 * H, MONTH),
        ("month", MONTH, "2025-12", MONTH, MONTH + 31 * 24 * H),
        ("month", MONTH + 40 * 24 * H, "2026-01", MONTH + 31 * 24 * H, MONTH + 62 * 24 * H),
    ],
)
def test_days_and_months_are_those_of_the_calendar_in_utc(kind, at, label, start, end):
    assert spending.period_at(kind, at) == spending.Period(kind, label, start, end)


@pytest.mark.parametrize(
    ("changes", "spent", "committed"),
    [
        ({}, 2.0, 2 * (2 + 1 / 12)),  # until its deadline, and five minutes
        ({"asked_at": NOW - 20 * H, "deadline": NOW + 20 * H}, 2 * 16.0, 2 * 8.0),  # the day's part alone
        ({"released_at": NOW - H / 2}, 1.0, 0.0),
        ({"asked_at": NOW - 18 * H, "released_at": NOW - 14 * H}, 4.0, 0.0),
        ({"asked_at": NOW - 18 * H, "released_at": NOW - 17 * H}, 0.0, 0.0),  # yesterday
        ({"asked_at": NOW - 50 * H, "released_at": NOW - 30 * H, "billed_usd": 7.0}, 0.0, 0.0),
        ({"pod_id": None, "state": "asked", "asked_at": NOW}, 0.0, 2 * (2 + 1 / 12)),  # a pod may come of it
        ({"pod_id": None, "state": "asked", "released_at": NOW}, 0.0, 0.0),
        ({"pod_id": None, "state": "waiting"}, 0.0, 0.0), ({"asked_at": None}, 0.0, 0.0),
        ({"asked_at": NOW - 9 * H, "deadline": NOW - H}, 2 * (8 + 1 / 12), 0.0),  # its leash ended it
        ({"asked_at": NOW - 9 * H, "deadline": NOW - H, "name": "lives"}, 18.0, 2 / 12),  # it did not
        ({"extra_usd": 0.5}, 2.5, 2 * (2 + 1 / 12)),  # of a second pod under its name
        ({"released_at": NOW - H / 2, "extra_usd": 0.5}, 1.5, 0.0),
        ({"pod_id": None, "state": "gone", "released_at": NOW, "extra_usd": 2.0}, 2.0, 0.0),  # one that nobody saw
        ({"pod_id": None, "state": "waiting", "extra_usd": 0.5}, 0.5, 0.0),
        ({"deadline": None}, 2.0, 2 * 8.0), ({"usd_per_hour": -5.0}, 0.0, 0.0),
    ],
)  # fmt: skip
def test_what_a_pod_counts_in_a_day(changes, spent, committed):
    use = spending.use_in([pod(**changes)], spending.period_at("day", NOW), NOW, alive=frozenset({"lives"}))
    assert (use.spent, use.committed) == (pytest.approx(spent), pytest.approx(committed))


def test_a_bill_counts_in_the_place_of_the_clock():
    closed = pod(asked_at=NOW - 50 * H, released_at=NOW - 30 * H, billed_usd=7.0)
    assert spending.use_in([closed], spending.period_at("month", NOW), NOW).spent == pytest.approx(7.0)


@pytest.mark.parametrize(
    ("caps", "others", "hours", "limit"),
    [
        (Caps(), [], 12.0, None),
        (Caps(day=100, month=1000), [], 12.0, None),
        (Caps(day=6), [], 3 - 1 / 12, "2025-11-24"),
        (Caps(month=6), [], 3 - 1 / 12, "2025-11"),
        (Caps(day=6, month=5), [], 2.5 - 1 / 12, "2025-11"),
        (Caps(day=16), [], 12.0, None),  # 8 h today, and 4 h tomorrow
        (Caps(day=17), [pod(asked_at=MIDNIGHT, deadline=MIDNIGHT + 5 * H)], 11 + 1 / 3, "2025-11-25"),
        (Caps(day=10), [pod()], (10 - 2 - 2 * (2 + 1 / 12)) / 2 - 1 / 12, "2025-11-24"),
        (Caps(day=2), [pod()], -1 / 12, "2025-11-24"),
        (Caps(day=1e-9), [], -1 / 12, "2025-11-24"),
    ],
)
def test_how_long_a_pod_may_live_by_what_all_may_cost(caps, others, hours, limit):
    deadline, use = spending.latest_deadline(others, caps, NOW, NOW + 12 * H, 2.0, NOW)
    assert (deadline - NOW) / H == pytest.approx(hours, abs=0.001)
    assert (use.period.label if use else None) == limit


def test_a_pod_never_passes_a_cap_of_any_day_it_lives_through():
    others = [pod(name=str(n), asked_at=NOW + n * 7 * H, deadline=NOW + n * 7 * H + 3 * H) for n in range(-3, 9)]
    for cap in (5.0, 13.0, 21.0, 40.0):
        for wanted in (1, 9, 30, 90):
            deadline, _ = spending.latest_deadline(others, Caps(day=cap), NOW, NOW + wanted * H, 1.5, NOW)
            own = pod(name="own", asked_at=NOW, deadline=deadline, usd_per_hour=1.5)
            for day in range(5) if deadline > NOW else ():
                use = spending.use_in([*others, own], spending.period_at("day", NOW + day * 24 * H), NOW)
                alone = spending.use_in(others, use.period, NOW)
                assert use.spent + use.committed <= max(cap, alone.spent + alone.committed) + 1e-6


# --- orders ---------------------------------------------------------------------------------------------------------


def test_an_order_lives_as_long_as_all_pods_together_may_cost_and_is_refused_with_the_figures(rig):
    caps = Caps(month=5.0)
    rig.ready(host="pod-1", caps=caps)  # twice an hour and one more: 3 h at 0.86
    rig.clock.sleep(H)
    second = rig.ready(host="pod-2", caps=caps).claim
    assert (second.deadline - second.asked_at) / H < 3
    use = spending.use_in(rig.claims.list_all(), spending.period_at("month", NOW), rig.clock.now())
    assert 4.5 < use.spent + use.committed <= 5.0
    said = rig.fails(left=2, host="pod-3", caps=caps)
    assert said == (
        f"pod-3: pod_max_usd_per_month is 5.00. In 2025-11 (UTC) {use.spent:.2f} USD are spent on pods, "
        f"{use.committed:.2f} are committed until their deadlines, and NVIDIA L40S at 0.86 USD/h would add 0.86, for "
        "1:00 h. Nothing was ordered. Release a pod that is not needed (playbooks/reap.yml lists them), wait until "
        "2025-12-01 00:00 UTC, or allow more: -e pod_max_usd_per_month=…"
    )
    assert rig.ready(host="pod-3", caps=Caps()).claim.deadline - rig.clock.now() > 2.9 * H
    assert len(rig.cloud.orders) == 3


def test_a_cheaper_candidate_is_taken_where_the_dear_one_does_not_fit(rig):
    rig.cloud.gpus = [gpu("A100", 1.64, memory=80), gpu("L40S", 0.86)]
    rig.ready(gpus=["A100", "L40S"], caps=Caps(day=1.2))
    assert rig.orders == ["L40S"]


def test_what_is_closed_or_deleted_goes_on_counting(rig):
    caps = Caps(day=3.0)
    claim = rig.ready(caps=caps, max_hours=2.0).claim
    rig.clock.sleep(2 * H - 400)
    rig.release(claim, "by hand")
    spent = spending.use_in(rig.claims.list_all(), spending.period_at("day", NOW), rig.clock.now()).spent
    assert spent == pytest.approx(1.64, abs=0.1)
    with pytest.raises(UserError, match=rf"{spent:.2f} USD are spent"):
        rig.manager.predict(dataclasses.replace(rig.wanted, host="pod-2", estimate=lambda gpu: 1.5))
    rig.claims.path_of(claim.name).unlink()
    with pytest.raises(UserError, match=r"pod_max_usd_per_day is 3\.00"):
        rig.manager.predict(dataclasses.replace(rig.wanted, host="pod-2", estimate=lambda gpu: 1.5))
    assert len(rig.cloud.orders) == 1
    rig.clock.sleep(24 * H)
    assert rig.manager.predict(dataclasses.replace(rig.wanted, host="pod-2")).offer
    assert rundir.read_json(rig.claims.folder / "spending.json")["caps"] == {"day": 3.0, "month": 0.0}


def test_an_order_that_is_refused_by_runpod_reserves_nothing(rig):
    rig.cloud.fate = [CAPACITY, CAPACITY] * 3
    rig.go(caps=Caps(day=5.0))
    use = spending.use_in(rig.claims.list_all(), spending.period_at("day", NOW), rig.clock.now())
    assert (use.spent, use.committed) == (0.0, 0.0)
    rig.go(40)
    assert len(rig.cloud.live) == 0
    assert rig.ready(caps=Caps(day=5.0)).claim.pod_id


def test_an_order_without_a_clear_answer_counts_and_not_twice(rig):
    caps = Caps(day=3.5)
    rig.cloud.fate, rig.cloud.lag = ["lost"], 5.0
    rig.go(caps=caps)
    assert rig.ready().claim.pod_id == "pod1"
    rig.cloud.fate = [NoAnswer("reset")]
    rig.wanted = dataclasses.replace(rig.wanted, host="pod-2", caps=Caps(day=9.0))
    first = rig.manager.advance(rig.wanted, 0).claim
    rig.clock.sleep(40)  # nothing came of it: it is ordered again, and its own reservation is in nobody's way
    again = rig.ready(caps=Caps(day=6.0)).claim
    assert (again.name, again.pod_id) == (first.name, "pod2")


def test_a_pod_that_outlives_its_deadline_counts_on_where_runpod_still_has_it(rig):
    claim = rig.ready(caps=Caps(day=6.0), max_hours=1.0).claim
    rig.clock.sleep(4 * H)
    wanted = dataclasses.replace(rig.wanted, host="pod-2", max_hours=24.0, estimate=lambda gpu: 4.0)
    with pytest.raises(UserError, match=r"pod_max_usd_per_day is 6\.00"):
        rig.manager.predict(wanted)
    rig.cloud.made[0]["status"] = "TERMINATED"  # its leash ended it, and nobody has looked
    assert rig.manager.predict(wanted).allowed_hours > 4
    assert claim.deadline < rig.clock.now()


def order_alone(folder: pathlib.Path, host: str, barrier: Any) -> None:
    clock = Clock()
    look = spending.latest_deadline

    def slowly(*args: Any) -> Any:
        found = look(*args)
        time.sleep(0.05)  # between the look and the reservation
        return found

    spending.latest_deadline = slowly
    times = watching.Clock(clock.now, clock.sleep)
    manager = PodManager(Cloud(clock).client(), Claims(folder, "cafe01"), lambda pod, claim: None, times)
    barrier.wait()
    try:
        manager.advance(dataclasses.replace(WANTED, host=host, caps=Caps(day=6.0, month=50.0)), 0)
    except UserError as error:
        (folder / f"{host}.refused").write_text(str(error))


def test_many_orders_at_once_do_not_pass_the_cap_together(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(10)
    workers = [context.Process(target=order_alone, args=(tmp_path, f"pod-{n}", barrier)) for n in range(10)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0] * 10
    claims = Claims(tmp_path, "cafe01").list_all()
    use = spending.use_in(claims, spending.period_at("day", NOW), Clock().now())
    ordered = [claim for claim in claims if claim.pod_id]
    assert 2 <= len(ordered) <= 6
    assert len(ordered) + len(list(tmp_path.glob("*.refused"))) == 10
    assert use.spent + use.committed <= 6.0


# --- renewals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("caps", "granted"),
    [
        (Caps(), 6.0),
        (Caps(day=10), 4 - 1 / 12),
        (Caps(day=7), 2.5 - 1 / 12),
        (Caps(day=6), None),
        (Caps(month=500), 6.0),
    ],
)
def test_a_renewal_is_noted_as_far_as_all_pods_may_cost(tmp_path, caps, granted):
    claims = Claims(tmp_path, "cafe01")
    own = claims.open_claim("pod-1", [], NOW, pod_id="p1", state="ready", usd_per_hour=2.0, asked_at=NOW - H,
                            deadline=NOW + 2 * H)  # fmt: skip
    deadline, why = spending.renew(claims, own.name, NOW + 6 * H, NOW + 2 * H, caps, NOW)
    assert (deadline is None) is (granted is None)
    assert granted is None or (deadline - NOW) / H == pytest.approx(granted, abs=0.01)
    assert claims.list_all()[0].deadline == (deadline or NOW + 2 * H)
    assert bool(why) is (granted != 6.0)


def test_two_renewals_share_what_is_left(tmp_path):
    claims, caps = Claims(tmp_path, "cafe01"), Caps(month=12.0)
    for host in ("pod-1", "pod-2"):
        claims.open_claim(host, [], NOW, pod_id=host, state="ready", usd_per_hour=1.0, asked_at=NOW, deadline=NOW + H)
    for claim in claims.list_all():
        spending.renew(claims, claim.name, NOW + 9 * H, NOW + H, caps, NOW)
    use = spending.use_in(claims.list_all(), spending.period_at("month", NOW), NOW)
    assert 11.9 < use.committed <= 12.0
    assert spending.renew(claims, "gone", NOW + 9 * H, NOW + H, caps, NOW) == (None, "its claim is gone")


# --- what people read -----------------------------------------------------------------------------------------------


def test_the_plan_says_what_counts_and_what_it_would_add(desk):
    desk.pod(max_usd_per_month=50)
    desk.clock.sleep(H)
    quote = desk.pod(check=True, host="pod-2", max_usd_per_month=50, max_usd_per_day=20)["message"]
    assert quote.endswith(
        "at the latest. 2025-11-24 (UTC): 0.86 USD spent on pods, 0.24 committed until their deadlines; "
        "pod_max_usd_per_day is 20.00, and this order would add 1.03 at most. 2025-11 (UTC): 0.86 USD spent on pods, "
        "0.24 committed until their deadlines; pod_max_usd_per_month is 50.00, and this order would add 1.03 at most"
    )
    assert len(desk.cloud.orders) == 1
    assert desk.call("runpod_pod_info")["show"]["lines"][1:] == [
        "  2025-11 (UTC): 0.86 USD spent on pods, 0.24 committed until their deadlines; pod_max_usd_per_month is 50.00"
    ]


def test_a_plan_that_does_not_fit_is_an_error_and_makes_nothing(desk):
    answer = desk.pod(check=True, max_usd_per_day=0.05)
    assert answer["failed"]
    assert "pod-1: pod_max_usd_per_day is 0.05. In 2025-11-24 (UTC) 0.00 USD are spent" in answer["msg"]
    assert not desk.state_dir.exists()


def test_the_status_says_it_too(tmp_path, monkeypatch):
    module = load("library/training_status")
    monkeypatch.setattr(module.time, "time", lambda: NOW)
    claims = Claims(tmp_path / "pods")
    claims.open_claim("pod-1", [], NOW, pod_id="p", state="ready", usd_per_hour=2.0, asked_at=NOW - H, deadline=NOW)
    given = {"output": str(tmp_path / "output"), "snapshots": {}, "wandb": False, "agents": None, "busy": [],
             "outside": [], "checkout": ROOT, "pods": str(tmp_path / "pods"), "display": "table"}  # fmt: skip
    lines = module.answer(given, check_mode=True)["show"]["lines"]
    assert "    2025-11 (UTC): 2.00 USD spent on pods, 0.17 committed until their deadlines" in lines
    given["pods"] = str(tmp_path / "none")
    assert module.answer(given, check_mode=True)["show"]["lines"] == ["  no run is known"]
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("deleted", [False, True])
def test_a_pod_that_nobody_saw_counts_against_the_caps_of_all(rig, deleted):
    rig.cloud.fate = [KeyboardInterrupt()]
    rig.wanted = dataclasses.replace(rig.wanted, caps=Caps(month=4.0))
    with pytest.raises(KeyboardInterrupt):
        rig.manager.advance(rig.wanted, 0)
    rig.clock.sleep(26 * H)
    ordered = rig.ready(caps=Caps(month=9.0)).claim  # 2.58 USD are counted for the first one, by then
    if deleted:
        for claim in rig.claims.list_all():
            claim.name == ordered.name or rig.claims.path_of(claim.name).unlink()
    known = spending.known_claims(rig.claims, rig.claims.owner, ordered.name)
    use = spending.use_in(known, spending.period_at("month", NOW), rig.clock.now())
    assert use.spent == pytest.approx(2.58, abs=0.01)
